// No thread_local.
// because: 'thread_local' is not supported in Metal
// source: MSL 4.0 section 1.5.4
thread_local float v = 1.0f;  // BUG
y[0] = x[0] + v;

// No heap to give back to.
// because: delete is not supported
// source: MSL 4.0 section 1.5.4
float v = x[0];
thread float* p = &v;
delete p;  // BUG
y[0] = v;

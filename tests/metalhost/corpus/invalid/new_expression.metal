// No heap.
// because: new is not supported
// source: MSL 4.0 section 1.5.4
thread float* p = new float(x[0]);  // BUG
y[0] = *p;

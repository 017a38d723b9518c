// The address of a local is stored in a device pointer.
// because: cannot initialize a variable of type 'device float *' with an rvalue of type 'thread float *'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
float v = x[0];
device float* p = &v;  // BUG
y[0] = *p;

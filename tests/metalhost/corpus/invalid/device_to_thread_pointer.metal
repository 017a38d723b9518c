// A device pointer is stored in a thread pointer.
// because: cannot initialize a variable of type 'const thread float *' with an lvalue of type 'const device float *'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
const thread float* p = x;  // BUG
y[0] = *p;

// A constant buffer is passed where device memory is expected.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// in: k float32 4
// header
float first(const device float* p) { return *p; }
// body
y[0] = x[0] + first(k);  // BUG

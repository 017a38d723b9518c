// An array of no elements.
// because: zero-length arrays are not permitted in C++
// source: C++14 8.3.4
float v[0];  // BUG
y[0] = x[0] + float(sizeof(v));

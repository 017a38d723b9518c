// The size of an array has to be a constant expression.
// because: variable length arrays are not allowed
// source: C++14 8.3.4
int n = int(x[0]);
float v[n];  // BUG
v[0] = x[0];
y[0] = v[0];

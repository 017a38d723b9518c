// There is no double.
// because: 'double' is not supported in Metal
// source: MSL 4.0 section 2.1; apache/tvm pull request 7118
double d = x[0];  // BUG
y[0] = float(d);

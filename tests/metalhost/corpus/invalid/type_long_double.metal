// There is no long double.
// because: 'long double' is not supported in Metal
// source: MSL 4.0 section 2.1
long double d = x[0];  // BUG
y[0] = float(d);

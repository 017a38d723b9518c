// There is no long long: long has 64 bits already.
// because: 'long long' is not supported in Metal
// source: MSL 4.0 section 2.1
long long n = 1;  // BUG
y[0] = x[0] + float(n);

// There is no unsigned long long.
// because: 'unsigned long long' is not supported in Metal
// source: MSL 4.0 section 2.1
unsigned long long n = 1;  // BUG
y[0] = x[0] + float(n);

// A cast to double.
// because: 'double' is not supported in Metal
// source: MSL 4.0 section 2.1
y[0] = float((double)x[0] * 2.0f);  // BUG

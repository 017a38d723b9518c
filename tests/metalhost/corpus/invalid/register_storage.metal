// No register variables.
// because: Metal does not support the 'register' storage class specifier
// source: MSL 4.0 section 1.5.4
register float v = x[0];  // BUG
y[0] = v;

// A scalar does not become a matrix implicitly.
// because: no viable conversion from 'float' to 'float2x2'
// source: MSL 4.0 section 2.22
float2x2 m = x[0];  // BUG
y[0] = m[0][0];

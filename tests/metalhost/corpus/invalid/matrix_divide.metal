// Matrices are not divided.
// because: invalid operands to binary expression ('float2x2' and 'float2x2')
// source: MSL 4.0 section 3.2
float2x2 m = float2x2(x[0]);
float2x2 n = m / m;  // BUG
y[0] = n[0][0];

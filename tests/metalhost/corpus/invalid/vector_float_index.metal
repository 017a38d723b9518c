// A vector is indexed by an integer.
// because: array subscript is not an integer
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
y[0] = v[0.5f];  // BUG

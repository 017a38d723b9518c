// A vector is not built from a matrix.
// because: no matching constructor
// source: MSL 4.0 section 2.2.2
float4 v = float4(float2x2(1.0f), x[0], x[1]);  // BUG
y[0] = v.x;

// A constructor with too few components.
// because: too few elements in vector initialization
// source: MSL 4.0 section 2.2.2
float4 v = float4(x[0], x[1], x[2]);  // BUG
y[0] = v.x;

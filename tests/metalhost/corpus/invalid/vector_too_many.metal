// A constructor with too many components.
// because: excess elements in vector initializer
// source: MSL 4.0 section 2.2.2
float2 v = float2(x[0], x[1], x[2]);  // BUG
y[0] = v.x;

// A matrix is not built from a mixture of vectors and scalars.
// because: no matching constructor
// source: MSL 4.0 section 2.3.2
float2 c = float2(x[0]);
float2x3 m = float2x3(c, 1.0f, c, 1.0f);  // BUG
y[0] = m[0][0];

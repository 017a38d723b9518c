// Not even by a cast.
// because: C-style cast from 'float3' to 'float' is not allowed
// source: MSL 4.0 section 2.22
float3 v = float3(x[0]);
y[0] = (float)v;  // BUG

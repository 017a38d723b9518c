// A float4 does not become a float3.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
float3 v = float4(x[0]);  // BUG
y[0] = v.x;

// Three columns times a vector of two.
// because: invalid operands to binary expression ('float3x3' and 'float2')
// source: MSL 4.0 section 3.2
float3x3 m = float3x3(1.0f);
float3 v = m * float2(x[0]);  // BUG
y[0] = v.x;

// Operands of different lengths.
// because: invalid operands to binary expression ('float3' and 'float2')
// source: MSL 4.0 section 3.1
float3 v = float3(x[0]) * float2(x[1]);  // BUG
y[0] = v.x;

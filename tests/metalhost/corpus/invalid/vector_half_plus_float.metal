// Nor do operands of different element types meet.
// because: invalid operands to binary expression ('half4' and 'float4')
// source: MSL 4.0 sections 2.22 and 3.1
half4 h = half4(1.0h);
float4 f = float4(x[0]);
y[0] = (h * f).x;  // BUG

// as_type keeps the size.
// because: as_type cast needs operands of one size
// source: MSL 4.0 section 2.21
half4 h = half4(1.0h);
float4 f = as_type<float4>(h);  // BUG
y[0] = x[0] + f.x;

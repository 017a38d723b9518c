// Two components take two values.
// because: assigning to 'float2' from incompatible type 'float4'
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
v.xy = float4(1.0f);  // BUG
y[0] = v.x;

// Swizzles on the left: pairs out of order, compound assignment, a swizzle of a swizzle.
// out: y float32 16 = 5 2 3 6 8 2 3 7 3 5 9 7 30 50 9 8
// grid: 1
// threadgroup: 1
device float4* w = (device float4*)y;
float4 p = float4(1.0f, 2.0f, 3.0f, 4.0f);
p.xw = float2(5.0f, 6.0f);
w[0] = p;
p.wx = float2(7.0f, 8.0f);
w[1] = p;
p.xyz = float3(3.0f, 5.0f, 9.0f);
w[2] = p;
p.xy *= 10.0f;
p.w += 1.0f;
w[3] = p;

// All ways to put a vector together, and the splat of a scalar.
// out: y float32 24 = 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 7 7 7 7
// grid: 1
// threadgroup: 1
device float4* w = (device float4*)y;
float2 a = float2(1.0f, 2.0f);
float2 b = float2(3.0f, 4.0f);
float3 c = float3(a, 3.0f);
w[0] = float4(a, b);
w[1] = float4(c, 4.0f);
w[2] = float4(1.0f, float3(2.0f, b));
w[3] = float4(1.0f, float2(2.0f, 3.0f), 4.0f);
w[4] = float4{1.0f, 2.0f, 3.0f, 4.0f};
w[5] = 7.0f;

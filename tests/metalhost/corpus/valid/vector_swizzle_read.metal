// Permuted, repeated and rgba component selections.
// in: x float32 8 = 1..8
// out: y float32 16 = 4 3 2 1 1 1 2 2 3 2 1 5 6 5 8 7
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
float4 a = v[0];
float4 b = v[1];
w[0] = a.wzyx;
w[1] = a.xxyy;
w[2] = float4(a.bgr, b.r);
w[3] = float4(b.yx, b.ab);

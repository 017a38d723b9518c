// select picks the second operand where the condition holds, for scalars and vectors.
// in: x float32 8 = -1 2 -3 4 5 6 7 8
// out: y float32 8 = 0 2 0 4 9 1 9 1
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
w[0] = select(float4(0.0f), v[0], v[0] > 0.0f);
w[1] = select(float4(1.0f), float4(9.0f), bool4(true, false, true, false));

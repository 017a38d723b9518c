// A vector converts from what a pointer points at.
// in: x float16 8 = 1..8
// out: y float32 8 = 2 4 6 8 10 12 14 16
// grid: 2
// threadgroup: 2
uint i = thread_position_in_grid.x;
const device half4* p = (const device half4*)x + i;
float4 a = float4(*p);
float4 b = float4(*reinterpret_cast<const device half4*>(x + 4 * i));
device float4* w = (device float4*)y;
w[i] = a + b;

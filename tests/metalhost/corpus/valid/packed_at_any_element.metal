// packed_half4 needs the alignment of half only.
// in: x float16 36 = 0..35
// out: y float32 8 = 10 26 42 58 74 90 106 122
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device packed_half4* v = (const device packed_half4*)(x + 4 * i + 1);
half4 h = half4(*v);
float4 f = float4(h);
y[i] = f.x + f.y + f.z + f.w;

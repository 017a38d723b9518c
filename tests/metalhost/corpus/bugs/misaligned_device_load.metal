// A float4 load that starts one float into the buffer.
// finds: misaligned
// in: x float32 64
// out: y float32 8
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)(x + 1);
y[i] = v[i].x;  // BUG

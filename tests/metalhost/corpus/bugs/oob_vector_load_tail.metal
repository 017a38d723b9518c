// The last float4 load straddles the end of a buffer of 62 floats.
// finds: out-of-bounds
// in: x float32 62
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)x;
float4 a = v[i];  // BUG
y[i] = a.x + a.y;

// Twelve-byte vectors: 21 of them fit in 64 floats, the 22nd does not.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 22
// grid: 22
// threadgroup: 22
uint i = thread_position_in_grid.x;
const device packed_float3* v = (const device packed_float3*)x;
float3 a = float3(v[i]);  // BUG
y[i] = a.x + a.y + a.z;

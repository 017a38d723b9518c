// Only three components of a vector are set before all four are used.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float4 v;
v.xyz = float3(x[i]);
y[i] = dot(v, float4(1.0f));  // BUG

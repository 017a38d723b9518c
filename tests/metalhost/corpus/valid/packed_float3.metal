// Tightly packed positions, loaded into float3 and stored back.
// in: x float32 24 = 0..23
// out: y float32 24 = 0 10 20 30 40 50 60 70 80 90 100 110 120 130 140 150 160 170 180 190 200 210 220 230
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device packed_float3* v = (const device packed_float3*)x;
device packed_float3* w = (device packed_float3*)y;
float3 p = v[i];
w[i] = packed_float3(p * 10.0f);

// Components of packed vectors by index and by letter, and packed bytes.
// in: x uint8 12 = 1..12
// out: y int32 4 = 6 15 24 33
// grid: 4
// threadgroup: 4
uint i = thread_position_in_grid.x;
const device packed_uchar3* v = (const device packed_uchar3*)x;
packed_uchar3 p = v[i];
packed_float3 q = packed_float3(0.0f, 0.0f, 0.0f);
q[0] = float(p[0]);
q.y = float(p.y);
q[2] = float(p.z);
y[i] = int(q.x + q[1] + q.z);

// Rows of 33 floats are read as float4.
// finds: misaligned
// in: x float32 32
// out: y float32 4
// grid: 32
// threadgroup: 32
threadgroup float tile[4 * 33];
uint i = thread_position_in_threadgroup.x;
for (int r = 0; r < 4; ++r) {
  tile[r * 33 + i] = x[i];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i < 4) {
  float4 v = *(threadgroup float4*)(tile + i * 33);  // BUG
  y[i] = v.x + v.w;
}

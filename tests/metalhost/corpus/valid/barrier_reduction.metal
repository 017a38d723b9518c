// A tree reduction in threadgroup memory with a barrier on each level.
// in: x float32 256 = 1..256
// out: y float32 2 = 8256 24640
// grid: 256
// threadgroup: 128
threadgroup float s[128];
uint i = thread_position_in_threadgroup.x;
s[i] = x[thread_position_in_grid.x];
for (uint h = 64; h > 0; h /= 2) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i < h) {
    s[i] += s[i + h];
  }
}
if (i == 0) {
  y[threadgroup_position_in_grid.x] = s[0];
}

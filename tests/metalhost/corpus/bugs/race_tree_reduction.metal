// An in-place tree reduction with no barrier between its levels.
// finds: race
// in: x float32 128
// out: y float32 1
// grid: 128
// threadgroup: 128
threadgroup float s[128];
uint i = thread_position_in_threadgroup.x;
s[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint h = 64; h > 0; h /= 2) {
  if (i < h) {
    s[i] += s[i + h];  // BUG
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i == 0) {
  y[0] = s[0];
}

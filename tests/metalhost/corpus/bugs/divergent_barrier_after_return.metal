// Threads beyond the end return before the barrier that the others wait at.
// finds: divergent-barrier
// in: x float32 50
// out: y float32 50
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
if (i >= 50) {
  return;
}
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
y[i] = tile[49 - i];

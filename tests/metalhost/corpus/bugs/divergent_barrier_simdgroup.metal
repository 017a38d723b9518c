// Only the first simdgroup reaches the barrier.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
if (simdgroup_index_in_threadgroup == 0) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

// Half of each simdgroup waits at a threadgroup barrier.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
if (thread_index_in_simdgroup < 16) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

// One helper with a barrier, called from both branches.
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
// finds: divergent-barrier
// header
inline void wait() {
  threadgroup_barrier(mem_flags::mem_threadgroup); // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];
if (simdgroup_index_in_threadgroup == 0) wait();
else wait();

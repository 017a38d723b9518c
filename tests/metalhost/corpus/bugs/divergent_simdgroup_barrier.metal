// A simdgroup barrier that the upper lanes skip.
// finds: divergent-barrier divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_threadgroup.x;
if (i < 8) {
  simdgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

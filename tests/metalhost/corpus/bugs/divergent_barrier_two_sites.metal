// Each branch has its own barrier: these are two barriers, not one.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
float v = x[i];
if (simdgroup_index_in_threadgroup == 0) {
  v += 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
} else {
  v += 2.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = v;

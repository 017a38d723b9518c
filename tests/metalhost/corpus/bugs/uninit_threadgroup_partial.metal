// Four simdgroups fill four slots and all 32 are reduced.
// finds: uninitialised
// in: x float32 128
// out: y float32 1
// grid: 128
// threadgroup: 128
threadgroup float part[32];
uint i = thread_position_in_threadgroup.x;
float s = simd_sum(x[i]);
if (thread_index_in_simdgroup == 0) {
  part[simdgroup_index_in_threadgroup] = s;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
s = simd_sum(part[thread_index_in_simdgroup]);  // BUG
if (i == 0) {
  y[0] = s;
}

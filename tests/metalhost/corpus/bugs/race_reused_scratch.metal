// The scratch of one simdgroup reduction is reused for the next without a barrier between.
// finds: race
// in: x float32 1024
// out: y float32 2
// grid: 1024
// threadgroup: 1024
threadgroup float part[32];
uint i = thread_position_in_threadgroup.x;
uint sg = simdgroup_index_in_threadgroup;
uint lane = thread_index_in_simdgroup;
float m = simd_max(x[i]);
if (lane == 0) {
  part[sg] = m;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
m = simd_max(part[lane]);  // BUG
float s = simd_sum(x[i]);
if (lane == 0) {
  part[sg] = s;  // BUG
}
threadgroup_barrier(mem_flags::mem_threadgroup);
s = simd_sum(part[lane]);
if (i == 0) {
  y[0] = m;
  y[1] = s;
}

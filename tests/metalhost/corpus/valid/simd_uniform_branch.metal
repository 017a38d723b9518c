// A whole simdgroup may take a branch alone and reduce inside it.
// in: x float32 64 = 1..64
// out: y float32 2 = 528 64
// grid: 64
// threadgroup: 64
float v = x[thread_position_in_grid.x];
float r;
if (simdgroup_index_in_threadgroup == 0) {
  r = simd_sum(v);
} else {
  r = simd_max(v);
}
if (thread_index_in_simdgroup == 0) {
  y[simdgroup_index_in_threadgroup] = r;
}

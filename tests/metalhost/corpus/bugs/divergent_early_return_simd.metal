// Lanes beyond the row return before the reduction of the others.
// finds: divergent-collective
// in: x float32 40
// out: y float32 2
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i >= 40) {
  return;
}
float s = simd_sum(x[i]);  // BUG
if (thread_index_in_simdgroup == 0) {
  y[threadgroup_position_in_grid.x] = s;
}

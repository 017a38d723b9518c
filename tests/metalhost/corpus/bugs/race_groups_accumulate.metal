// Split partial sums are added to one element by all threadgroups without an atomic.
// finds: race
// in: x float32 128
// out: y float32 1
// init: 0
// grid: 128
// threadgroup: 32
float s = simd_sum(x[thread_position_in_grid.x]);
if (thread_index_in_simdgroup == 0) {
  y[0] += s;  // BUG
}

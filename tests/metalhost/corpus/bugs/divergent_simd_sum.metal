// A reduction that only the lanes inside the bounds take part in.
// finds: divergent-collective
// in: x float32 20
// out: y float32 1
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i < 20) {
  float s = simd_sum(x[i]);  // BUG
  if (i == 0) {
    y[0] = s;
  }
}

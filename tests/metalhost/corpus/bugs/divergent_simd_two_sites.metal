// Both branches reduce, each at its own call.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v;
if (i & 1) {
  v = simd_max(x[i]);  // BUG
} else {
  v = simd_sum(x[i]);  // BUG
}
y[i] = v;

// A function calls itself without end.
// finds: recursion stack-overflow
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// header
float down(float v) {
  return v < 1e30f ? 1.0f + down(v * 0.5f) : v;  // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = down(x[i]);

// Writes one element past the end of the output.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i == 0) {
  y[0] = 0.0f;
}
if (i + 1 < 64) {
  y[i + 1] = x[i];
} else {
  y[i + 1] = 0.0f;  // BUG
}

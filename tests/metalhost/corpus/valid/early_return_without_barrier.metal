// Threads beyond the end may return when no collective follows.
// in: x float32 50 = 0..49
// out: y float32 50 = 1..50
// grid: 64
// threadgroup: 64
uint i = thread_position_in_grid.x;
if (i >= 50) {
  return;
}
y[i] = x[i] + 1.0f;

// An output with an initial value may be written in part.
// in: x float32 32 = 0..31
// out: y float32 32 = 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 16..31
// init: 7
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (x[i] > 15.0f) {
  y[i] = x[i];
}

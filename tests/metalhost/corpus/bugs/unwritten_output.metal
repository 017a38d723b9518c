// The kernel never writes its output.
// finds: unwritten
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (x[i] > 1e30f) {
  y[i] = x[i];
}

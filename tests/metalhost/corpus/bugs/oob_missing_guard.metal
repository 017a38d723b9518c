// The grid is rounded up to whole threadgroups and the guard is forgotten.
// finds: out-of-bounds
// in: x float32 50
// out: y float32 50
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];  // BUG
if (i < 50) {
  y[i] = v;
}

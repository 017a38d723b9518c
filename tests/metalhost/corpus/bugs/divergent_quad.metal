// A quad reduction that skips one thread of each quad.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];
if ((i & 3) != 3) {
  v = quad_sum(v);  // BUG
}
y[i] = v;

// A value is set in one branch only.
// finds: uninitialised
// in: x float32 32 = -16..15
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v;
if (x[i] > 0.0f) {  // BUG
  v = x[i];
}
y[i] = v * 2.0f;  // BUG

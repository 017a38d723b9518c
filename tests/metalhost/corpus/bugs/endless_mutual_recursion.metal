// Two functions call each other without end.
// finds: recursion stack-overflow
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// header
float pong(float v);
float ping(float v) {
  return v + pong(v * 0.5f);  // BUG
}
float pong(float v) {
  return v - ping(v * 0.25f);  // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = ping(x[i]);

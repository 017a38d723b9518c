// The accumulator of a dot product is never set to zero.
// finds: uninitialised
// in: x float32 64
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float acc;
for (int j = 0; j < 4; ++j) {
  acc += x[i * 4 + j];  // BUG
}
y[i] = acc;  // BUG

// Three scalars are passed in constant memory and the fourth is read.
// finds: out-of-bounds
// in: k float32 3
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc = 0.0f;
for (int j = 0; j < 4; ++j) {
  acc += k[j];  // BUG
}
y[i] = acc;

// The rows of a cache slice are 16 apart but only 8 wide: column 8 belongs to somebody else.
// finds: out-of-bounds
// in: x float32 8x16[:,0:8]
// out: y float32 8
// strided: true
// grid: 8
// threadgroup: 8
uint r = thread_position_in_grid.x;
float acc = 0.0f;
for (int c = 0; c <= x_shape[1]; ++c) {
  acc += x[r * x_strides[0] + c];  // BUG
}
y[r] = acc;

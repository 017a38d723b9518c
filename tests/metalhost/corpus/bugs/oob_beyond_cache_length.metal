// Reads the padding rows that a KV cache keeps behind its current length.
// finds: out-of-bounds
// in: k float32 2x32x8[:,0:20]
// out: y float32 16
// strided: true
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
uint head = i / 8;
uint d = i % 8;
float acc = 0.0f;
for (int n = 0; n < 32; ++n) {
  acc += k[head * k_strides[0] + n * k_strides[1] + d];  // BUG
}
y[i] = acc;

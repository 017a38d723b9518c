// Nibbles of packed words with a scale and a bias, the pattern of quantised kernels.
// in: w uint32 8 = 1985229328
// in: s float16 8 = 0.5
// in: b float16 8 = -1
// out: y float32 64 = -1 -0.5 0 0.5 1 1.5 2 2.5
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device uint8_t* bytes = (const device uint8_t*)(w + i);
float scale = s[i];
float bias = b[i];
for (int j = 0; j < 4; ++j) {
  uint8_t v = bytes[j];
  y[i * 8 + 2 * j] = scale * float(v & 0x0f) + bias;
  y[i * 8 + 2 * j + 1] = scale * float((v & 0xf0) >> 4) + bias;
}

// The loop never ends because its counter wraps.
// finds: time-limit
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc = 0.0f;
for (uint j = 31; j >= 0; --j) {  // BUG
  acc += x[j & 31];  // BUG
}
y[i] = acc;

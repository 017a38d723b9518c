// The same collective by two ways through helpers, one of them recursive.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
// header
inline float next(float v) {
  return simd_shuffle_xor(v, ushort(1)); // BUG
}
inline float twice(float v, int n) {
  return n == 0 ? v : next(twice(v, n - 1));
}
// body
uint i = thread_position_in_grid.x;
float v = x[i];
v = i % 2 ? twice(v, 2) : next(next(v));
y[i] = v;

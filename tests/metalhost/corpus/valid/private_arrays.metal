// Two-dimensional private arrays, aggregate initialisation, metal::array and pointer steps.
// in: x float32 8 = 0..7
// out: y float32 8 = 10 16 22 28 34 40 46 52
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float m[2][3] = {{0.0f, 0.0f, 0.0f}};
for (int r = 0; r < 2; ++r) {
  for (int c = 0; c < 3; ++c) {
    m[r][c] += x[i];
  }
}
array<float, 4> a = {1.0f, 2.0f, 3.0f, 4.0f};
float s = 0.0f;
thread float* p = &m[0][0];
for (int j = 0; j < 3; ++j) {
  s += *p++;
}
for (size_t j = 0; j < a.size(); ++j) {
  s += a[j];
}
y[i] = s + m[1][0] + m[1][1] + m[1][2];

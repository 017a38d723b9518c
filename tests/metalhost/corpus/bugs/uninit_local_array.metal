// A private array of eight of which seven are written.
// finds: uninitialised
// in: n int32 1 = 7
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v[8];
for (int j = 0; j < n[0]; ++j) {
  v[j] = x[i] + float(j);
}
float s = 0.0f;
for (int j = 0; j < 8; ++j) {
  s += v[j];  // BUG
}
y[i] = s;  // BUG

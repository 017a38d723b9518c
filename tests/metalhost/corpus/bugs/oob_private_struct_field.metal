// Running off an array inside a struct reaches the next field.
// finds: out-of-bounds
// in: n int32 1 = 3
// out: y float32 16
// grid: 16
// threadgroup: 16
// header
struct Pair {
  float key[2];
  float value[2];
};
// body
uint i = thread_position_in_grid.x;
Pair p = {{1.0f, 2.0f}, {3.0f, 4.0f}};
float s = 0.0f;
for (int j = 0; j < n[0]; ++j) {
  s += p.key[j];  // BUG
}
y[i] = s;

// A dynamic index of 4 into a float4.
// finds: out-of-bounds
// in: n int32 1 = 5
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float4 v = float4(1.0f, 2.0f, 3.0f, 4.0f);
float s = 0.0f;
for (int j = 0; j < n[0]; ++j) {
  s += v[j];  // BUG
}
y[i] = s;

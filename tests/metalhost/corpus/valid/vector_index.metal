// Components by array index, read and written.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 3 5 7 9
// grid: 1
// threadgroup: 1
float4 v = float4(x[0], x[1], x[2], x[3]);
float4 r;
for (int j = 0; j < 4; ++j) {
  r[j] = 2.0f * v[j] + 1.0f;
}
for (int j = 0; j < 4; ++j) {
  y[j] = r[j];
}

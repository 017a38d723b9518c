// A loop fills five slots of a private array of four.
// finds: out-of-bounds
// in: n int32 1 = 5
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc[4];
for (int j = 0; j < n[0]; ++j) {
  acc[j] = x[i] * float(j);  // BUG
}
y[i] = acc[0] + acc[1] + acc[2] + acc[3];

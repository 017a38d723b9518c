// A dtype, an integer and a flag as template arguments.
// template: T=float16 D=4 DOUBLE=true
// in: x float16 32 = 0..31
// out: y float16 8 = 12 44 76 108 140 172 204 236
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
T acc = T(0);
for (int j = 0; j < D; ++j) {
  acc += x[i * D + j];
}
if (DOUBLE) {
  acc *= T(2);
}
y[i] = acc;

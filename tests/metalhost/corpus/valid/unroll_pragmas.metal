// Unrolling pragmas in both spellings.
// in: x float32 32 = 0..31
// out: y float32 8 = 6 22 38 54 70 86 102 118
// grid: 8
// threadgroup: 8
// header
#define UNROLL _Pragma("clang loop unroll(full)")
// body
uint i = thread_position_in_grid.x;
float acc = 0.0f;
UNROLL
for (int j = 0; j < 2; ++j) {
  acc += x[i * 4 + j];
}
#pragma unroll
for (int j = 2; j < 4; ++j) {
  acc += x[i * 4 + j];
}
y[i] = acc;

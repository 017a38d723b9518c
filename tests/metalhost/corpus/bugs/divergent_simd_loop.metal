// A shuffle in a loop whose trip count differs by lane.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];
for (uint k = 0; k < i / 8; ++k) {
  v += simd_shuffle_xor(v, 1);  // BUG
}
y[i] = v;

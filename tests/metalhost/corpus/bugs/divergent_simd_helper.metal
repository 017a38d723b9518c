// One helper called from both branches of a lane's condition: each half of the lanes is alone.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
// header
inline float total(float v) {
  return simd_sum(v); // BUG
}
// body
uint i = thread_position_in_grid.x;
float v = x[i];
if (i < 16) v = total(v);
else v = total(v);
y[i] = v;

// One row of softmax per simdgroup with a running maximum.
// in: x float32 4x64 = 0..3
// out: y float32 4x64 = 0.0020036628 0.0054465197 0.014805176 0.040244643
// tolerance: 1e-5
// grid: 128
// threadgroup: 32
uint row = threadgroup_position_in_grid.x;
uint lane = thread_index_in_simdgroup;
float m = -INFINITY;
float l = 0.0f;
for (uint c = lane; c < 64; c += 32) {
  float v = x[row * 64 + c];
  float n = max(m, v);
  l = l * fast::exp(m - n) + fast::exp(v - n);
  m = n;
}
float top = simd_max(m);
l = simd_sum(l * fast::exp(m - top));
for (uint c = lane; c < 64; c += 32) {
  y[row * 64 + c] = fast::exp(x[row * 64 + c] - top) / l;
}

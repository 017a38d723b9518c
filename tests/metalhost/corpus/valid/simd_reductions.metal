// Sum, maximum, minimum and product over a simdgroup.
// in: x float32 32 = 1..32
// out: y float32 4 = 528 32 1 16
// out: k int32 3 = 496 31 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
float s = simd_sum(x[i]);
float hi = simd_max(x[i]);
float lo = simd_min(x[i]);
float p = simd_product(i < 4 ? 2.0f : 1.0f);
int ks = simd_sum(int(i));
int kh = simd_max(int(i));
int kl = simd_min(int(i));
if (i == 0) {
  y[0] = s;
  y[1] = hi;
  y[2] = lo;
  y[3] = p;
  k[0] = ks;
  k[1] = kh;
  k[2] = kl;
}

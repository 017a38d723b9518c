// Reductions of vectors and of half go component by component.
// out: y float32 4 = 496 992 32 0
// out: h float16 1 = 496
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
float4 s = simd_sum(float4(float(i), 2.0f * float(i), 1.0f, 0.0f));
half t = simd_sum(half(i));
if (i == 0) {
  ((device float4*)y)[0] = s;
  h[0] = t;
}

// Inclusive and exclusive prefix sums and products.
// out: y int32 32 = 0 1 3 6 10 15 21 28 36 45 55 66 78 91 105 120 136 153 171 190 210 231 253 276 300 325 351 378 406 435 465 496
// out: z int32 32 = 0 0 1 3 6 10 15 21 28 36 45 55 66 78 91 105 120 136 153 171 190 210 231 253 276 300 325 351 378 406 435 465
// out: p float32 32 = 2 4 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8
// out: q float32 32 = 1 2 4 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_prefix_inclusive_sum(int(i));
z[i] = simd_prefix_exclusive_sum(int(i));
float f = i < 3 ? 2.0f : 1.0f;
p[i] = simd_prefix_inclusive_product(f);
q[i] = simd_prefix_exclusive_product(f);

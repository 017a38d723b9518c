// Bitwise reductions over a simdgroup.
// out: y uint32 3 = 16 31 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
uint a = simd_and(i | 16u);
uint o = simd_or(i);
uint x = simd_xor(i);
if (i == 0) {
  y[0] = a & 16u;
  y[1] = o;
  y[2] = x;
}

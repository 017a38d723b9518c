// SIMD functions take scalars and vectors.
// because: no matching function for call to 'simd_sum'
// source: MSL 4.0 section 6.9.2
// header
struct Pair {
  float a;
  float b;
};
// body
Pair p = {x[0], x[1]};
y[0] = simd_sum(p).a;  // BUG

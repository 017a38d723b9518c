// SIMD reductions do not take 64-bit integers.
// because: call to 'simd_sum' has no match for 64-bit integers
// source: MSL 4.0 section 6.9.2 (not size_t); MLX reduces 8-byte types by shuffles of halves
ulong n = simd_sum(ulong(x[0]));  // BUG
y[0] = float(n);

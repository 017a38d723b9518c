// Bitwise reductions take integers.
// because: no matching function for call to 'simd_xor'
// source: MSL 4.0 table 6.15
y[0] = simd_xor(x[0]);  // BUG

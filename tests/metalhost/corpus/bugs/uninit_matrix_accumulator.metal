// The accumulator of a matrix multiply is never cleared.
// finds: uninitialised
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_float8x8 acc;
simdgroup_load(m, a, 8);
simdgroup_multiply_accumulate(acc, m, m, acc);  // BUG
simdgroup_store(acc, y, 8);  // BUG

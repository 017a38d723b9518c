// An 8x8 load whose last row lies behind the end of a 7x8 matrix.
// finds: out-of-bounds
// in: a float32 7x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);  // BUG
simdgroup_store(m, y, 8);

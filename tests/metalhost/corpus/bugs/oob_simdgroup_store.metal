// The store uses a row stride of 16 on an output that is only 8 wide.
// finds: out-of-bounds
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
simdgroup_store(m, y, 16);  // BUG

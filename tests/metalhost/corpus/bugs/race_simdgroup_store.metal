// One simdgroup stores a matrix, the other loads it without waiting.
// finds: race
// also: uninitialised
// in: a float32 8x8
// out: y float32 8x8
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
simdgroup_float8x8 m;
if (simdgroup_index_in_threadgroup == 0) {
  simdgroup_load(m, a, 8);
  simdgroup_store(m, tile, 8);  // BUG
} else {
  simdgroup_load(m, tile, 8);  // BUG
  simdgroup_store(m, y, 8);
}

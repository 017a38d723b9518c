// A matrix multiply inside a branch on the lane.
// finds: divergent-collective
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
if (thread_index_in_simdgroup < 24) {
  simdgroup_multiply(m, m, m);  // BUG
}
simdgroup_store(m, y, 8);  // BUG

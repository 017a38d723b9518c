// A barrier in a loop that the simdgroups leave after different numbers of rounds.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
for (uint k = 0; k <= simdgroup_index_in_threadgroup; ++k) {
  acc += x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = acc;

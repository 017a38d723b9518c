// The tile has one slot per simdgroup and 32 of them, but it is indexed by thread.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i / 2];

// Reads past the end of a threadgroup array.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i + 1];  // BUG

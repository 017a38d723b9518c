// mem_none makes the barrier an execution barrier only.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_none);
y[i] = tile[63 - i];  // BUG

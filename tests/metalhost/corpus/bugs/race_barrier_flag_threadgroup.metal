// The barrier fences threadgroup memory, the data goes through device memory.
// finds: race
// in: x float32 64
// out: t float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = t[63 - i];  // BUG

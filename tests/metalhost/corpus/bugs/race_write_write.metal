// Every thread writes its own value to one slot.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float last[1];
uint i = thread_position_in_threadgroup.x;
last[0] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = last[0];

// Two barriers on one line, each for a part of the threads: neither is reached by all.
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
// finds: divergent-barrier
uint i = thread_position_in_grid.x;
y[i] = x[i];
if (i < 32) threadgroup_barrier(mem_flags::mem_none); else threadgroup_barrier(mem_flags::mem_none); // BUG

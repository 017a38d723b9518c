// Both threadgroups write the same output elements.
// finds: race
// in: x float32 64
// out: y float32 32
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[thread_position_in_threadgroup.x] = x[i];  // BUG

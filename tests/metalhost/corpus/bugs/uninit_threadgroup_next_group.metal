// The second threadgroup relies on what the first left in threadgroup memory.
// finds: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
if (threadgroup_position_in_grid.x == 0) {
  tile[i] = x[i];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[thread_position_in_grid.x] = tile[31 - i];  // BUG

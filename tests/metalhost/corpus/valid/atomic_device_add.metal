// A histogram in device memory.
// in: x uint32 64 = 0..7
// out: bins uint32 8 = 8
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* b = (device atomic_uint*)bins;
atomic_fetch_add_explicit(b + x[i], 1u, memory_order_relaxed);

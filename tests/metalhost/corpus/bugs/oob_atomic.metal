// A histogram bin one behind the last.
// finds: out-of-bounds
// in: x uint32 32 = 0..16 0..14
// out: bins uint32 16
// init: 0
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* b = (device atomic_uint*)bins;
atomic_fetch_add_explicit(b + x[i], 1u, memory_order_relaxed);  // BUG

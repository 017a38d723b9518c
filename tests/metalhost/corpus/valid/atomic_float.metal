// Float addition in device memory.
// in: x float32 64 = 1..64
// out: y float32 1 = 2080
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_float* a = (device atomic_float*)y;
atomic_fetch_add_explicit(a, x[i], memory_order_relaxed);

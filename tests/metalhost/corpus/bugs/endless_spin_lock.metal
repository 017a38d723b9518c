// A lane spins on a lock that its own simdgroup holds and never gives back.
// finds: time-limit
// in: x float32 32
// out: y uint32 33
// init: 0
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* lock = (device atomic_uint*)(y + 32);
while (atomic_exchange_explicit(lock, 1u, memory_order_relaxed) != 0u) {  // BUG
}
y[i] = uint(x[i]);

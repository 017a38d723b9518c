// A 64-bit read at a 4-byte boundary.
// finds: misaligned
// in: x uint32 64
// out: y uint32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device uint64_t* v = (const device uint64_t*)(x + 2 * i + 1);
y[i] = uint(*v >> 32);  // BUG

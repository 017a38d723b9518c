// A 64-bit offset that leaves the address space of the launch.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
int64_t far = int64_t(1) << 44;
y[i] = x[far + i];  // BUG

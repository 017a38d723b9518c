// A pointer read from a buffer is written through.
// finds: out-of-bounds fault
// in: x uint64 32 = 4096
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device float* p = (device float*)x[i];
*p = 1.0f;  // BUG
y[i] = 0.0f;

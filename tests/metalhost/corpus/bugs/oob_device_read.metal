// Reads one element past the end of the input.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i + 1];  // BUG

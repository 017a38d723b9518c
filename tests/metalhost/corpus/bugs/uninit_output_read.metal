// The output is accumulated into without having been written: it holds garbage on a GPU.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] += x[i];  // BUG

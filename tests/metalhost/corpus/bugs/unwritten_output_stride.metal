// Every second element is left out.
// finds: unwritten
// in: x float32 64
// out: y float32 64
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[2 * i] = x[2 * i] + x[2 * i + 1];

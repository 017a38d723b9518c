// Reads the element before the first one: the left neighbour of element 0.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
int i = int(thread_position_in_grid.x);
float left = x[i - 1];  // BUG
y[i] = x[i] - left;

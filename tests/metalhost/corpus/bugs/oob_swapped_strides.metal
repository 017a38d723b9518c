// Row and column strides are swapped, so the last rows fall out of the matrix.
// finds: out-of-bounds
// in: x float32 4x16
// out: y float32 64
// grid: 16 4
// threadgroup: 16 4
uint c = thread_position_in_grid.x;
uint r = thread_position_in_grid.y;
y[r * 16 + c] = x[c * 16 + r];  // BUG

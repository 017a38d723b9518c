// The flat index is computed in short and wraps to a negative offset.
// finds: out-of-bounds
// in: x float32 16
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
short stride = 30000;
short offset = short(stride * short(i < 8 ? 0 : 2));
y[i] = x[int(offset) + int(i)];  // BUG

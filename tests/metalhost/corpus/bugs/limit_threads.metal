// 1056 threads in a threadgroup, 1024 are allowed.
// finds: threadgroup-size
// in: x float32 1056
// out: y float32 1056
// grid: 1056
// threadgroup: 1056
uint i = thread_position_in_grid.x;
y[i] = x[i];

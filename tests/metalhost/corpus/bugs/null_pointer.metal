// A null device pointer is dereferenced.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
const device float* p = x[i] > 1e30f ? x : nullptr;
y[i] = p[0];  // BUG

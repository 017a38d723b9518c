// mx.fast.metal_kernel takes ASCII only, comments included.
// finds: non-ascii
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
y[i] = x[i];  // BUG the naïve way

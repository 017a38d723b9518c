// A Greek variable name.
// finds: non-ascii
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
float α = 2.0f;  // BUG
y[i] = 2.0f * x[i];

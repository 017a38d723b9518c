// The index into a private array comes from the data and is one too large for some threads.
// finds: out-of-bounds
// in: idx int32 16 = 0..7 1..8
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float lut[8] = {0, 1, 2, 3, 4, 5, 6, 7};
y[i] = lut[idx[i]];  // BUG

// Many threads reading one location is no race.
// in: x float32 64 = 0..63
// out: y float32 64 = 5..68
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i] + x[5];

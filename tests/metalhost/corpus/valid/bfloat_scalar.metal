// bfloat converts to float by itself and back only by a cast, rounding to nearest even.
// in: x float32 8 = 1 1.00390625 1.01171875 3.140625 -2.5 0.1 100 65536
// out: y float32 8 = 1 1 1.015625 3.140625 -2.5 0.10009765625 100 65536
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
bfloat b = bfloat(x[i]);
float f = b;
y[i] = f;

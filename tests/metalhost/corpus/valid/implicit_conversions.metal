// What MSL converts by itself: between scalars except to bfloat, and a scalar into a vector.
// in: x float32 8 = 1..8
// out: y float32 8 = 2.5 4 5.5 7 8.5 10 11.5 13
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
half h = x[i] * 0.5f;
int n = x[i];
float f = h;
float one = true;
float4 v = one;
v += n;
y[i] = f + v.z;

// isnan, isinf, isfinite, isnormal, signbit; NaN loses every comparison but !=.
// in: x float32 8 = 0 1 -1 inf -inf nan 1e-40 2
// out: y int32 48 = 0 0 1 0 0 0 0 0 1 1 0 0 0 0 1 1 1 0 0 1 0 0 0 0 0 1 0 0 1 0 1 0 0 0 0 1 0 0 1 0 0 0 0 0 1 1 0 0
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device int* w = y + 6 * i;
float v = x[i];
w[0] = isnan(v);
w[1] = isinf(v);
w[2] = isfinite(v);
w[3] = isnormal(v);
w[4] = signbit(v);
w[5] = v != v;

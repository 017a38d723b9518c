// floor, ceil, trunc, rint (ties to even), round (ties away), fract and fmod.
// in: x float32 8 = -2.5 -1.5 -0.5 0.5 1.5 2.5 3.25 -3.75
// out: y float32 56 = -3 -2 -2 -2 -3 0.5 -0.5 -2 -1 -1 -2 -2 0.5 -1.5 -1 0 0 0 -1 0.5 -0.5 0 1 0 0 1 0.5 0.5 1 2 1 2 2 0.5 1.5 2 3 2 2 3 0.5 0.5 3 4 3 3 3 0.25 1.25 -4 -3 -3 -4 -4 0.25 -1.75
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 7 * i;
float v = x[i];
w[0] = floor(v);
w[1] = ceil(v);
w[2] = trunc(v);
w[3] = rint(v);
w[4] = round(v);
w[5] = fract(v);
w[6] = fmod(v, 2.0f);

// Float to integer truncates, to half rounds to nearest even; bool is 0 or 1.
// in: x float32 8 = 1.9 -1.9 2.5 2049 2051 0 -0.5 3
// out: y int32 8 = 1 -1 2 2049 2051 0 0 3
// out: z float32 8 = 1.9003906 -1.9003906 2.5 2048 2052 0 -0.5 3
// out: b int32 8 = 1 1 1 1 1 0 1 1
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
y[i] = static_cast<int>(x[i]);
z[i] = float(half(x[i]));
b[i] = bool(x[i]);

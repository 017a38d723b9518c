// Dividing by zero gives an unspecified value and disturbs nothing else.
// in: x int32 8 = 1 2 0 4 0 6 7 8
// in: use int32 8 = 1 1 0 1 0 1 1 1
// out: y int32 8 = 100 50 -1 25 -1 20 16 16
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
int q = 100 / x[i];
int r = 100 % x[i];
y[i] = use[i] ? q + r : -1;

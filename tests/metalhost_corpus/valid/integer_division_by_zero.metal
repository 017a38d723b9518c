// Dividing by zero gives some value and disturbs nothing.
// in: x int32 8 = 1 2 0 4 0 6 7 8
// out: y int32 8 = 100 50 -1 25 -1 16 14 12
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
int q = 100 / x[i];
int r = 100 % x[i];
y[i] = x[i] == 0 ? -1 : q + 0 * r;

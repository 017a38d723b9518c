// min, max and clamp with both arguments of one type, for every width.
// in: x int32 8 = -4 -3 -2 -1 0 1 2 3
// out: y int32 8 = 1 1 1 2 3 5 7 8
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
int v = x[i];
uint u = max(uint(1), 1u);
short s = min(short(1), short(2));
long l = max(1L, long(-5));
y[i] = clamp(v, -2, 2) + max(0, v) + int(u) + s + int(l);

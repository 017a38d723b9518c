// Single elements of bool2, bool3 and bool4 are written and kept apart.
// out: y int32 9 = 1 0 0 1 1 0 1 1 0
// grid: 1
// threadgroup: 1
bool2 a = bool2(false);
a.x = true;
bool3 b = bool3(true);
b[0] = false;
bool4 c = bool4(false, true, true, true);
c.w = false;
y[0] = a.x;
y[1] = a.y;
y[2] = b.x;
y[3] = b.y;
y[4] = b.z;
y[5] = c.x;
y[6] = c.y;
y[7] = c.z;
y[8] = c.w;

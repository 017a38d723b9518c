// Comparisons give bool vectors; any, all, not and the bitwise and logical operators on them.
// in: x float32 8 = 1 -2 3 -4 5 6 7 8
// out: y int32 10 = 1 0 1 0 1 0 1 1 0 1
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
bool4 p = v[0] > 0.0f;
bool4 q = v[1] > 0.0f;
y[0] = p.x;
y[1] = p.y;
y[2] = p[2];
y[3] = int(p[3]);
y[4] = any(p);
y[5] = all(p);
y[6] = all(q);
y[7] = any(!p);
y[8] = all(p & q);
y[9] = all(p | q);

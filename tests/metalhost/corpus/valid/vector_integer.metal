// Integer vectors: arithmetic, remainder, shifts by a vector, bitwise operators.
// out: y int32 16 = 5 7 9 11 1 0 3 2 2 8 24 64 -2 -3 -4 -5
// grid: 1
// threadgroup: 1
device int4* w = (device int4*)y;
int4 a = int4(1, 2, 3, 4);
int4 b = int4(4, 5, 6, 7);
w[0] = a + b;
w[1] = (b + 1) % int4(4, 2, 4, 3) + int4(0, 0, 0, 0);
w[2] = a << a;
w[3] = ~a;

// char, short and uchar vectors convert by constructor and wrap.
// out: y int32 12 = 44 1 2 3 -1 -2 -3 127 255 254 253 252
// grid: 1
// threadgroup: 1
device int4* w = (device int4*)y;
uchar4 a = uchar4(int4(300, 1, 2, 3));
char4 b = char4(-1, -2, -3, 127);
ushort4 c = ushort4(255, 254, 253, 252);
w[0] = int4(a);
w[1] = int4(b);
w[2] = int4(short4(c));

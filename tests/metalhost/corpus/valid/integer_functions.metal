// abs, absdiff, addsat, subsat, hadd, rhadd, mulhi, mul24, mad24, madhi, rotate.
// out: y int32 12 = 7 9 127 0 3 4 1 600 601 2 -2147483646 1
// grid: 1
// threadgroup: 1
y[0] = abs(-7);
y[1] = int(absdiff(-4, 5));
y[2] = addsat(char(100), char(100));
y[3] = subsat(uchar(3), uchar(9));
y[4] = hadd(3, 4);
y[5] = rhadd(3, 4);
y[6] = mulhi(1 << 30, 4);
y[7] = mul24(20, 30);
y[8] = mad24(20, 30, 1);
y[9] = madhi(1 << 30, 4, 1);
y[10] = int(rotate(0x40000001u, 1u));
y[11] = int(rotate(0x80000000u, 1u));

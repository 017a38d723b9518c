// bfloat matrices.
// in: a bfloat16 8x8 = 0..63
// out: y bfloat16 8x8 = 0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 64 66 68 70 72 74 76 78 80 82 84 86 88 90 92 94 96 98 100 102 104 106 108 110 112 114 116 118 120 122 124 126
// grid: 32
// threadgroup: 32
simdgroup_bfloat8x8 m;
simdgroup_bfloat8x8 d = simdgroup_bfloat8x8(bfloat(2.0f));
simdgroup_load(m, a, 8);
simdgroup_bfloat8x8 r;
simdgroup_multiply(r, m, d);
simdgroup_store(r, y, 8);

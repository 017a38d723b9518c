// Half matrices in, half matrix out, through threadgroup memory.
// in: a float16 8x8 = 0..63
// out: y float16 8x8 = 0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 64 66 68 70 72 74 76 78 80 82 84 86 88 90 92 94 96 98 100 102 104 106 108 110 112 114 116 118 120 122 124 126
// grid: 32
// threadgroup: 32
threadgroup half tile[64];
uint i = thread_index_in_simdgroup;
tile[i] = a[i];
tile[i + 32] = a[i + 32];
simdgroup_barrier(mem_flags::mem_threadgroup);
simdgroup_half8x8 m;
simdgroup_half8x8 d = simdgroup_half8x8(2.0h);
simdgroup_load(m, tile, 8);
simdgroup_half8x8 r;
simdgroup_multiply(r, m, d);
simdgroup_store(r, y, 8);

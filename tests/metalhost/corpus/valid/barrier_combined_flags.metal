// Both kinds of memory are ordered by one barrier.
// in: x float32 64 = 0..63
// out: t float32 64 = 0..63
// out: y float32 64 = 126 124 122 120 118 116 114 112 110 108 106 104 102 100 98 96 94 92 90 88 86 84 82 80 78 76 74 72 70 68 66 64 62 60 58 56 54 52 50 48 46 44 42 40 38 36 34 32 30 28 26 24 22 20 18 16 14 12 10 8 6 4 2 0
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
y[i] = t[63 - i] + tile[63 - i];

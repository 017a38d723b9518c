// Filling shuffles within groups of `modulo` lanes: what leaves one side comes from the filling data.
// out: up32 int32 32 = -129 -130 -131 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28
// out: up8 int32 32 = -105 -106 -107 0 1 2 3 4 -113 -114 -115 8 9 10 11 12 -121 -122 -123 16 17 18 19 20 -129 -130 -131 24 25 26 27 28
// out: down16 int32 32 = 5 6 7 8 9 10 11 12 13 14 15 -100 -101 -102 -103 -104 21 22 23 24 25 26 27 28 29 30 31 -116 -117 -118 -119 -120
// out: down2 int32 32 = 1 -100 3 -102 5 -104 7 -106 9 -108 11 -110 13 -112 15 -114 17 -116 19 -118 21 -120 23 -122 25 -124 27 -126 29 -128 31 -130
int lane = int(thread_index_in_simdgroup);
int filling = -100 - lane;
up32[lane] = simd_shuffle_and_fill_up(lane, filling, ushort(3));
up8[lane] = simd_shuffle_and_fill_up(lane, filling, ushort(3), ushort(8));
down16[lane] = simd_shuffle_and_fill_down(lane, filling, ushort(5), ushort(16));
down2[lane] = simd_shuffle_and_fill_down(lane, filling, ushort(1), ushort(2));

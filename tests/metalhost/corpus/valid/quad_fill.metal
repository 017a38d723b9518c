// Filling shuffles of quadgroups, whole and in pairs, and with bfloat through MLX's names.
// out: up int32 32 = -103 0 1 2 -107 4 5 6 -111 8 9 10 -115 12 13 14 -119 16 17 18 -123 20 21 22 -127 24 25 26 -131 28 29 30
// out: pairs int32 32 = 1 -100 3 -102 5 -104 7 -106 9 -108 11 -110 13 -112 15 -114 17 -116 19 -118 21 -120 23 -122 25 -124 27 -126 29 -128 31 -130
// out: half_down float32 32 = 2 3 -100 -101 6 7 -104 -105 10 11 -108 -109 14 15 -112 -113 18 19 -116 -117 22 23 -120 -121 26 27 -124 -125 30 31 -128 -129
int lane = int(thread_index_in_simdgroup);
int filling = -100 - lane;
up[lane] = quad_shuffle_and_fill_up(lane, filling, ushort(1));
pairs[lane] = quad_shuffle_and_fill_down(lane, filling, ushort(1), ushort(2));
half_down[lane] = float(simd_shuffle_and_fill_down(bfloat16_t(lane), bfloat16_t(filling), ushort(2), ushort(4)));

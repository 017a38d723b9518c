// Shuffles: by lane, by mask, up and down keep the lanes that would wrap.
// out: y int32 32 = 31..0
// out: z int32 32 = 5 4 7 6 1 0 3 2 13 12 15 14 9 8 11 10 21 20 23 22 17 16 19 18 29 28 31 30 25 24 27 26
// out: u int32 32 = 0 1 2 0..28
// out: d int32 32 = 3..31 29 30 31
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_shuffle(int(i), ushort(31 - i));
z[i] = simd_shuffle_xor(int(i), ushort(5));
u[i] = simd_shuffle_up(int(i), ushort(3));
d[i] = simd_shuffle_down(int(i), ushort(3));

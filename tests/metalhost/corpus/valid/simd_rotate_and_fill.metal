// Rotations wrap; shuffle_and_fill takes the missing lanes from a second value.
// out: r int32 32 = 3..31 0 1 2
// out: s int32 32 = 29 30 31 0..28
// out: d int32 32 = 2..31 100 101
// out: u int32 32 = 130 131 0..29
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
int a = int(i);
r[i] = simd_shuffle_rotate_down(a, ushort(3));
s[i] = simd_shuffle_rotate_up(a, ushort(3));
d[i] = simd_shuffle_and_fill_down(a, 100 + a, ushort(2));
u[i] = simd_shuffle_and_fill_up(a, 100 + a, ushort(2));

// Reductions, shuffles and broadcasts over quads of four lanes.
// out: s int32 32 = 6 6 6 6 22 22 22 22 38 38 38 38 54 54 54 54 70 70 70 70 86 86 86 86 102 102 102 102 118 118 118 118
// out: m int32 32 = 3 3 3 3 7 7 7 7 11 11 11 11 15 15 15 15 19 19 19 19 23 23 23 23 27 27 27 27 31 31 31 31
// out: b int32 32 = 2 2 2 2 6 6 6 6 10 10 10 10 14 14 14 14 18 18 18 18 22 22 22 22 26 26 26 26 30 30 30 30
// out: x int32 32 = 1 0 3 2 5 4 7 6 9 8 11 10 13 12 15 14 17 16 19 18 21 20 23 22 25 24 27 26 29 28 31 30
// out: u int32 32 = 0 0 1 2 4 4 5 6 8 8 9 10 12 12 13 14 16 16 17 18 20 20 21 22 24 24 25 26 28 28 29 30
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
int a = int(i);
s[i] = quad_sum(a);
m[i] = quad_max(a);
b[i] = quad_broadcast(a, ushort(2));
x[i] = quad_shuffle_xor(a, ushort(1));
u[i] = quad_shuffle_up(a, ushort(1));

// Votes and prefixes over quads.
// out: y int32 32 = 0 0 0 0 0 0 0 0 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
// out: z int32 32 = 1
// out: p int32 32 = 1 2 3 4
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = quad_all(i / 4 == 2);
z[i] = quad_any((i & 3) == 3);
p[i] = quad_prefix_inclusive_sum(1);

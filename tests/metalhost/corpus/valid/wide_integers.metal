// 64-bit arithmetic, shifts, comparisons and strides.
// in: x uint32 8 = 1..8
// out: y uint64 8 = 8589934599 17179869191 25769803783 34359738375 42949672967 51539607559 60129542151 68719476743
// out: z int64 8 = -3000000000 -6000000000 -9000000000 -12000000000 -15000000000 -18000000000 -21000000000 -24000000000
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
ulong v = (ulong(x[i]) << 33) + 7ul;
y[i] = v;
long w = -long(x[i]) * 3000000000L;
z[i] = w;

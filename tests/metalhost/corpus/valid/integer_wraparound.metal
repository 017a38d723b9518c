// Unsigned arithmetic is modulo 2^n and shifts use the low bits of the count.
// in: n uint32 8 = 0 1 31 32 33 40 63 64
// out: y uint32 8 = 1 2 2147483648 1 2 256 2147483648 1
// out: z uint32 8 = 4294967295 0 30 31 32 39 62 63
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
y[i] = 1u << n[i];
z[i] = n[i] - 1u;

// clz, ctz, popcount, reverse_bits, extract_bits, insert_bits.
// out: y uint32 10 = 31 32 4 32 8 2147483648 10 3840 16 1
// grid: 1
// threadgroup: 1
y[0] = clz(1u);
y[1] = clz(0u);
y[2] = ctz(16u);
y[3] = ctz(0u);
y[4] = popcount(255u);
y[5] = reverse_bits(1u);
y[6] = extract_bits(0xa0u, 4u, 4u);
y[7] = insert_bits(0u, 15u, 8u, 4u);
y[8] = clz(ushort(0));
y[9] = popcount(uchar(128));

// One lane to all, the first active lane to all, and who is first.
// out: y float32 32 = 7
// out: z float32 32 = 0
// out: w int32 32 = 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_broadcast(float(i), ushort(7));
z[i] = simd_broadcast_first(float(i));
w[i] = simd_is_first();

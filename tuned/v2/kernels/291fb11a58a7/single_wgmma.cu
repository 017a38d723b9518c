// One block takes 128 rows of one KV head over all keys, the last rows first: they see most where
// the mask is causal.
__shared__ __align__(1024) T shared[3 * 32 * (D > DV ? D : DV)];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int q_len = queries_shape[2];
const int kv_len = keys_shape[2];
const int rows = GROUP * q_len;
const int row0 = (gridDim.x - 1 - blockIdx.x) * 128;
const int kv_head = blockIdx.y;
const int batch = blockIdx.z;

Accumulator<DV> state;
attend<T, D, DV, GROUP, MASK>(
    state, shared, queries, queries_strides, keys, keys_strides, values, values_strides, mask,
    mask_strides, scale[0], q_len, kv_len, batch, kv_head, row0, warp, lane);
#pragma unroll
for (int h = 0; h < 2; ++h) {
  const int row = row0 + warp * 16 + 8 * h + lane / 4;
  if (row < rows) {
    const int head = kv_head * GROUP + row / q_len;
    const float factor = share<MASK, SINKS>(state.top[h], state.sum[h], sinks, head);
    T* const to = out + ((batch * int64_t(keys_shape[1]) + kv_head) * rows + row) * DV;
#pragma unroll
    for (int i = 0; i < DV / 8; ++i) {
      const float* const sums = state.out[i / 8] + i % 8 * 4 + 2 * h;
      *reinterpret_cast<uint32_t*>(to + 8 * i + lane % 4 * 2) =
          pack(sums[0] * factor, sums[1] * factor, T());
    }
    if (MASK == ADDITIVE_MASK && factor < 0.0f) {
#pragma unroll 1
      for (int i = 0; i < DV / 4; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;  // what this lane wrote
        to[column] = T(blind_row<MASK>(
            values + batch * values_strides[0] + kv_head * values_strides[1] +
            column * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] +
            row % q_len * mask_strides[2],
            mask_strides[3], kv_len));
      }
    }
  }
}

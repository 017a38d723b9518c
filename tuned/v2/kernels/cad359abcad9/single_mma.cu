// The only launch where the batch fills the GPU: one block takes 16 TILES query rows of one KV head
// over all keys.
constexpr int ROWS = GROUP * QLEN;
constexpr int ROW_BLOCKS = (ROWS + 16 * TILES - 1) / (16 * TILES);
__shared__ __align__(16) Shared<T, TILES, WARPS, KEYS> shared;
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 16 * TILES;
const int batch = blockIdx.z;
const int kv_len = keys_shape[2];

Accumulator<DV / WARPS, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES, WARPS, KEYS, LATENT>(
    state, shared, queries, queries_strides, keys, keys_strides, values, values_strides,
    mask, mask_strides, scale[0], kv_len, batch, kv_head, row0, 0, 1, warp, lane);
each_octet(state, warp, lane, [&](int row, int column, const float (&octet)[8]) {
  if (row0 + row < ROWS) {
    const int at = row0 + row;
    const int head = kv_head * GROUP + at / QLEN;
    const float factor = share<SINKS>(shared.top[row], shared.sum[row], sinks, head);
    T* to = out + ((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + at) * DV + column;
    uint32_t words[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      words[e] = bits(T(octet[2 * e] * factor), T(octet[2 * e + 1] * factor));
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    if (factor < 0.0f) {
#pragma unroll 1
      for (int e = 0; e < 8; ++e) {
        to[e] = T(blind_row<MASK>(
            values + batch * values_strides[0] + kv_head * values_strides[1] +
            (column + e) * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] + at % QLEN * mask_strides[2],
            mask_strides[3], kv_len));
      }
    }
  }
});

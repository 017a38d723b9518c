// The only launch where the batch fills the GPU: one block takes 8 TILES query rows of one KV head
// over all keys.
constexpr int ROWS = GROUP * QLEN;
constexpr int HELD = ROWS < 8 * TILES ? ROWS : 8 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 8 * TILES - 1) / (8 * TILES);
__shared__ float tops[WARPS * 8 * TILES];
__shared__ float sums[WARPS * 8 * TILES];
__shared__ __align__(16) float outs[WARPS * HELD * DV];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 8 * TILES;
const int batch = blockIdx.z;
const int kv_len = keys_shape[2];

Accumulator<DV, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES>(
    state, queries, queries_strides, keys, keys_strides, values, values_strides, mask, mask_strides,
    scale[0], kv_len, batch, kv_head, row0, warp, WARPS, lane);
auto write = [&](int row, int column, float total, float top, float sum) {
  row += row0;
  if (row < ROWS) {
    const int head = kv_head * GROUP + row / QLEN;
    out[((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row) * DV + column] =
        T(settle<MASK, SINKS>(
            total, top, sum, sinks, head,
            values + batch * values_strides[0] + kv_head * values_strides[1] +
            column * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] + row % QLEN * mask_strides[2],
            mask_strides[3], kv_len));
  }
};
merge<DV, HELD, TILES, WARPS>(state, tops, sums, outs, warp, lane, write);

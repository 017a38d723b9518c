// First of two launches: one block takes 16 TILES query rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes DV sums, and top and sum of weights, a row for
// combine_mma.cu.
constexpr int ROWS = GROUP * QLEN;
constexpr int ROW_BLOCKS = (ROWS + 16 * TILES - 1) / (16 * TILES);
__shared__ __align__(16) Shared<T, TILES, WARPS, KEYS> shared;
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 16 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];

Accumulator<DV / WARPS, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES, WARPS, KEYS, LATENT>(
    state, shared, queries, queries_strides, keys, keys_strides, values, values_strides,
    mask, mask_strides, scale[0], kv_len, batch, kv_head, row0, split, SPLITS, warp, lane);
each_octet(state, warp, lane, [&](int row, int column, const float (&octet)[8]) {
  if (row0 + row < ROWS) {
    const int64_t at =
        ((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row0 + row) * SPLITS + split;
    float4* to = reinterpret_cast<float4*>(partial + at * DV + column);
    to[0] = make_float4(octet[0], octet[1], octet[2], octet[3]);
    to[1] = make_float4(octet[4], octet[5], octet[6], octet[7]);
    if (column == 0) {
      *reinterpret_cast<float2*>(stats + at * 2) = make_float2(shared.top[row], shared.sum[row]);
    }
  }
});

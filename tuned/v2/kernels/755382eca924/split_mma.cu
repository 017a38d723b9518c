// First of two launches: one block takes 8 TILES query rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes DV sums, the top and the sum of weights
// a row for combine.metal.
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
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];

Accumulator<DV, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES>(
    state, queries, queries_strides, keys, keys_strides, values, values_strides, mask, mask_strides,
    scale[0], kv_len, batch, kv_head, row0, split * WARPS + warp, SPLITS * WARPS, lane);
merge<DV, HELD, TILES, WARPS>(
    state, tops, sums, outs, warp, lane,
    [&](int row, int column, float out, float top, float sum) {
      if (row0 + row < ROWS) {
        const int64_t at =
            ((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row0 + row) * SPLITS + split;
        partial[at * (DV + 2) + column] = out;
        if (column < 2) {
          partial[at * (DV + 2) + DV + column] = column ? sum : top;
        }
      }
    });

// First of two launches: one threadgroup takes ROWS query rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes their attention, the top and the sum of weights of
// every row for combine.metal.
constexpr int ROW_TILES = (GROUP * QLEN + ROWS - 1) / ROWS;
constexpr int COLUMNS = DV / SIMDGROUPS;
constexpr int STAGED = staged<T, (D > DV ? D : DV) / SIMDGROUPS>();
threadgroup uint4 tile[SIMDGROUPS * KEYS * STAGED * sizeof(T) / 16];
threadgroup float partial_scores[SIMDGROUPS * (KEYS / 8) * tile_of_sums<ROWS>()];
threadgroup T weights[ROWS * KEYS];
threadgroup float fades[ROWS];
threadgroup float tops[ROWS];
threadgroup float sums[ROWS];

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int kv_head = threadgroup_position_in_grid.y / ROW_TILES;
const int row0 = threadgroup_position_in_grid.y % ROW_TILES * ROWS;
const int batch = threadgroup_position_in_grid.z / SPLITS;
const int split = threadgroup_position_in_grid.z % SPLITS;

threadgroup T* own_tile = (threadgroup T*)tile + simdgroup * KEYS * STAGED;
simdgroup_matrix<float, 8, 8> sum_of_values[ROWS / 8][COLUMNS / 8];
attend<T, D, DV, GROUP, QLEN, MASK, ROWS, KEYS, SIMDGROUPS, LATENT>(
    sum_of_values, own_tile, partial_scores, weights, fades, tops, sums, queries,
    queries_strides, keys, keys_strides, values, values_strides, mask, mask_strides,
    scale[0], keys_shape[2], batch, kv_head, row0, split, SPLITS, simdgroup, lane);

constexpr int WIDE = laid_out<T, COLUMNS, KEYS>();
const long rows = batch * (long)keys_shape[1] + kv_head;
threadgroup float* laid = (threadgroup float*)own_tile;
#pragma unroll
for (int r = 0; r < ROWS / 8; ++r) {
#pragma unroll
  for (int first = 0; first < COLUMNS; first += WIDE) {
    lay_out<WIDE>(sum_of_values[r], first, laid);
    for (int at = 2 * lane; at < 8 * WIDE; at += 64) {
      const int held = 8 * r + at / WIDE;
      const int row = row0 + held;
      const int column = simdgroup * COLUMNS + first + at % WIDE;
      if (row >= GROUP * QLEN) {
        continue;
      }
      const long to = (rows * (GROUP * QLEN) + row) * SPLITS + split;
      const float share = sums[held] > 0.0f ? 1.0f / sums[held] : 0.0f;
      *(device vec<T, 2>*)(partial + to * DV + column) =
          vec<T, 2>(T(laid[at] * share), T(laid[at + 1] * share));
      if (column == 0) {
        split_tops[to] = tops[held];
        split_sums[to] = sums[held];
      }
    }
  }
}

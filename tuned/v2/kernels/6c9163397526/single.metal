// The only launch where the context is short: one threadgroup takes ROWS query rows of one KV
// head over all keys.
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
const int batch = threadgroup_position_in_grid.z;

threadgroup T* own_tile = (threadgroup T*)tile + simdgroup * KEYS * STAGED;
simdgroup_matrix<float, 8, 8> sum_of_values[ROWS / 8][COLUMNS / 8];
attend<T, D, DV, GROUP, QLEN, MASK, ROWS, KEYS, SIMDGROUPS, LATENT>(
    sum_of_values, own_tile, partial_scores, weights, fades, tops, sums, queries,
    queries_strides, keys, keys_strides, values, values_strides, mask, mask_strides,
    scale[0], keys_shape[2], batch, kv_head, row0, 0, 1, simdgroup, lane);

constexpr int WIDE = laid_out<T, COLUMNS, KEYS>();
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
      const int head = kv_head * GROUP + row / QLEN;
      // The sink takes weight and gives no value.
      const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;
      const float all = max(tops[held], own);
      const float fade = fast::exp2(tops[held] - all);
      const float sum = sums[held] * fade + (SINKS ? fast::exp2(own - all) : 0.0f);
      device T* to = out +
          ((batch * (long)keys_shape[1] + kv_head) * (GROUP * QLEN) + row) * DV + column;
      *(device vec<T, 2>*)to = vec<T, 2>(T(laid[at] * fade / sum), T(laid[at + 1] * fade / sum));
      for (int e = 0; sum == 0.0f && e < 2; ++e) {
        to[e] = T(blind<T, MASK>(
            values + batch * values_strides[0] + kv_head * values_strides[1] +
                (column + e) * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] +
                row % QLEN * mask_strides[2],
            mask_strides[3], keys_shape[2]));
      }
    }
  }
}

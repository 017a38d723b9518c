// First of two launches: one threadgroup takes 8 TILES * ROW_GROUPS rows of one KV head over one of
// SPLITS interleaved shares of the keys, and writes their attention, the top and the sum of weights
// of every row for combine.metal.
constexpr int SIMDGROUPS = ROW_GROUPS * KEY_GROUPS;
constexpr int WIDE = laid_out<DV>();
threadgroup uint4 memory[pool<T, D, DV, KEYS, SIMDGROUPS>()];
threadgroup float tops[8 * TILES * ROW_GROUPS];
threadgroup float sums[8 * TILES * ROW_GROUPS];
threadgroup float others[2 * 8 * TILES * SIMDGROUPS];

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int thread_index = simdgroup * 32 + lane;
const int q_len = queries_shape[2];
const int rows = GROUP * q_len;
const int row0 = threadgroup_position_in_grid.x * 8 * TILES * ROW_GROUPS;
const int kv_head = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z / SPLITS;
const int split = threadgroup_position_in_grid.z % SPLITS;

State<TILES, DV / 8> state;
threadgroup T* key_tile = (threadgroup T*)memory;
attend<T, D, DV, GROUP, MASK, TILES, ROW_GROUPS, KEY_GROUPS, KEYS>(
    state, key_tile, key_tile + KEYS * staged<T, D>(), queries, queries_strides, keys,
    keys_strides, values, values_strides, mask, mask_strides, scale[0], q_len, keys_shape[2],
    batch, kv_head, row0, split, SPLITS, simdgroup, lane);
settle<TILES, DV / 8, ROW_GROUPS, KEY_GROUPS>(state, tops, sums, others, simdgroup, lane);
threadgroup float* laid = (threadgroup float*)memory;
#pragma unroll
for (int t = 0; t < TILES; ++t) {
#pragma unroll
  for (int first = 0; first < DV; first += WIDE) {
    lay_out<WIDE>(state.out[t], first / 8, laid, simdgroup);
    for (int at = 2 * thread_index; at < ROW_GROUPS * 8 * WIDE; at += 64 * SIMDGROUPS) {
      const int held = (at / (8 * WIDE) * TILES + t) * 8 + at / WIDE % 8;
      const int row = row0 + held;
      const int column = first + at % WIDE;
      if (row >= rows) {
        continue;
      }
      float a = 0.0f;
      float b = 0.0f;
#pragma unroll
      for (int k = 0; k < KEY_GROUPS; ++k) {
        a += laid[k * ROW_GROUPS * 8 * WIDE + at];
        b += laid[k * ROW_GROUPS * 8 * WIDE + at + 1];
      }
      const long to = ((batch * (long)keys_shape[1] + kv_head) * rows + row) * SPLITS + split;
      const float share = sums[held] > 0.0f ? 1.0f / sums[held] : 0.0f;
      *(device vec<T, 2>*)(partial + to * DV + column) = vec<T, 2>(T(a * share), T(b * share));
      if (column == 0) {
        split_tops[to] = tops[held];
        split_sums[to] = sums[held];
      }
    }
  }
}

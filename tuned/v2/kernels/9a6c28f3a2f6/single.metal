// The only launch where there are rows enough: one threadgroup takes 8 TILES * ROW_GROUPS rows of
// one KV head over all keys, the last rows first: they see most where the mask is causal.
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
const int row0 =
    (threadgroups_per_grid.x - 1 - threadgroup_position_in_grid.x) * 8 * TILES * ROW_GROUPS;
const int kv_head = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;

State<TILES, DV / 8> state;
threadgroup T* key_tile = (threadgroup T*)memory;
attend<T, D, DV, GROUP, MASK, TILES, ROW_GROUPS, KEY_GROUPS, KEYS>(
    state, key_tile, key_tile + KEYS * staged<T, D>(), queries, queries_strides, keys,
    keys_strides, values, values_strides, mask, mask_strides, scale[0], q_len, keys_shape[2],
    batch, kv_head, row0, 0, 1, simdgroup, lane);
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
      const int head = kv_head * GROUP + row / q_len;
      // The sink takes weight and gives no value.
      const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;
      const float all = max(tops[held], own);
      const float fade = fast::exp2(tops[held] - all);
      const float sum = sums[held] * fade + (SINKS ? fast::exp2(own - all) : 0.0f);
      device T* to = out + ((batch * (long)keys_shape[1] + kv_head) * rows + row) * DV + column;
      const float share = sum != 0.0f ? fade / sum : 0.0f;
      *(device vec<T, 2>*)to = vec<T, 2>(T(a * share), T(b * share));
      for (int e = 0; MASK == ADDITIVE && sum == 0.0f && e < 2; ++e) {
        to[e] = T(blind<T>(
            values + batch * values_strides[0] + kv_head * values_strides[1] +
                (column + e) * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] +
                row % q_len * mask_strides[2],
            mask_strides[3], keys_shape[2]));
      }
    }
  }
}

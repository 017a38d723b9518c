// One threadgroup takes 8 TILES * ROW_GROUPS rows of one KV head over all keys, the last rows
// first: they see most where the mask is causal.
constexpr int SIMDGROUPS = ROW_GROUPS * KEY_GROUPS;
constexpr int WIDE = laid_out<DV>();
threadgroup float memory[pool<D, DV, KEYS, SIMDGROUPS>()];
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

const auto k = operand<T, BITS, QGROUP>(keys, keys_strides, key_scales, key_scales_strides,
                                        key_biases, key_biases_strides, batch, kv_head);
const auto v = operand<T, BITS, QGROUP>(values, values_strides, value_scales,
                                        value_scales_strides, value_biases, value_biases_strides,
                                        batch, kv_head);
State<TILES, DV / 8> state;
attend<T, BITS, D, DV, GROUP, MASK, TILES, ROW_GROUPS, KEY_GROUPS, KEYS>(
    state, memory, memory + KEYS * staged<D>(), queries, queries_strides, k, v, mask, mask_strides,
    scale[0], q_len, keys_shape[2], batch, kv_head, row0, simdgroup, lane);
settle<TILES, DV / 8, ROW_GROUPS, KEY_GROUPS>(state, tops, sums, others, simdgroup, lane);
#pragma unroll
for (int t = 0; t < TILES; ++t) {
#pragma unroll
  for (int first = 0; first < DV; first += WIDE) {
    lay_out<WIDE>(state.out[t], first / 8, memory, simdgroup);
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
        a += memory[k * ROW_GROUPS * 8 * WIDE + at];
        b += memory[k * ROW_GROUPS * 8 * WIDE + at + 1];
      }
      const int head = kv_head * GROUP + row / q_len;
      const float sum = sums[held];
      device T* to = out + ((batch * (long)keys_shape[1] + kv_head) * rows + row) * DV + column;
      const float share = sum != 0.0f ? 1.0f / sum : 0.0f;
      *(device vec<T, 2>*)to = vec<T, 2>(T(a * share), T(b * share));
      for (int e = 0; MASK == ADDITIVE && sum == 0.0f && e < 2; ++e) {
        to[e] = T(blind<BITS>(
            v, column + e,
            mask + batch * mask_strides[0] + head * mask_strides[1] +
                row % q_len * mask_strides[2],
            mask_strides[3], keys_shape[2]));
      }
    }
  }
}

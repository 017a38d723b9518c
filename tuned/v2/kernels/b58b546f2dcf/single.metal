// The only launch where the context is short: one threadgroup takes ROWS query rows of one KV
// head over all keys.
constexpr int ROW_TILES = (GROUP * QLEN + ROWS - 1) / ROWS;
constexpr int COLUMNS = own_elements<T, DV, LANES>();
threadgroup T rows[ROWS * D];
threadgroup float tops[SIMDGROUPS * ROWS];
threadgroup float sums[SIMDGROUPS * ROWS];
threadgroup float columns[SIMDGROUPS * DV];

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int thread_index = simdgroup * 32 + lane;
const int kv_head = threadgroup_position_in_grid.y / ROW_TILES;
const int row0 = threadgroup_position_in_grid.y % ROW_TILES * ROWS;
const int batch = threadgroup_position_in_grid.z;

lay_queries<T, D, GROUP, QLEN, ROWS, SIMDGROUPS * 32>(
    rows, queries, queries_strides, batch, kv_head, row0, thread_index);
threadgroup_barrier(mem_flags::mem_threadgroup);
State<ROWS, COLUMNS> state;
attend<T, D, DV, GROUP, QLEN, MASK, ROWS, LANES, KEYS, UNROLL>(
    state, rows, keys, keys_strides, values, values_strides, mask,
    mask_strides, scale[0], keys_shape[2], batch, kv_head, row0, simdgroup, SIMDGROUPS, lane);
if (lane == 0) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    tops[simdgroup * ROWS + r] = state.top[r];
    sums[simdgroup * ROWS + r] = state.sum[r];
  }
}
#pragma unroll
for (int r = 0; r < ROWS; ++r) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int row = row0 + r;
  if (row < GROUP * QLEN) {
    lay_out<T, DV, LANES, ROWS, SIMDGROUPS, COLUMNS>(state, r, tops, columns, simdgroup, lane);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (row < GROUP * QLEN) {
    const int head = kv_head * GROUP + row / QLEN;
    const int position = row % QLEN;
    const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;
    float top = FLOOR;
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < SIMDGROUPS; ++s) {
      top = max(top, tops[s * ROWS + r]);
    }
#pragma unroll
    for (int s = 0; s < SIMDGROUPS; ++s) {
      sum += sums[s * ROWS + r] * fast::exp2(tops[s * ROWS + r] - top);
    }
    // The sink takes weight and gives no value.
    const float all = max(top, own);
    const float fade = fast::exp2(top - all);
    sum = sum * fade + (SINKS ? fast::exp2(own - all) : 0.0f);
#pragma unroll 1
    for (int column = thread_index; column < DV; column += SIMDGROUPS * 32) {
      float total = 0.0f;
#pragma unroll
      for (int s = 0; s < SIMDGROUPS; ++s) {
        total += columns[s * DV + column];
      }
      total = total * fade / sum;
      if (sum == 0.0f) {
        total = blind<T, MASK>(
            values + batch * values_strides[0] + kv_head * values_strides[1] +
            column * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] + position * mask_strides[2],
            mask_strides[3], keys_shape[2]);
      }
      out[((long)batch * keys_shape[1] * (GROUP * QLEN) + kv_head * (GROUP * QLEN) + row) * DV +
          column] = T(total);
    }
  }
}

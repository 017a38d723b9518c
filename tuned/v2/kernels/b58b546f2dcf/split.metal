// First of two launches: one threadgroup takes ROWS query rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes their attention, the top and the sum of weights of
// every row for combine.metal.
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
const int batch = threadgroup_position_in_grid.z / SPLITS;
const int split = threadgroup_position_in_grid.z % SPLITS;

lay_queries<T, D, GROUP, QLEN, ROWS, SIMDGROUPS * 32>(
    rows, queries, queries_strides, batch, kv_head, row0, thread_index);
threadgroup_barrier(mem_flags::mem_threadgroup);
State<ROWS, COLUMNS> state;
attend<T, D, DV, GROUP, QLEN, MASK, ROWS, LANES, KEYS, UNROLL>(
    state, rows, keys, keys_strides, values, values_strides, mask,
    mask_strides, scale[0], keys_shape[2], batch, kv_head, row0, split * SIMDGROUPS + simdgroup,
    SPLITS * SIMDGROUPS, lane);
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
    const long head = batch * (long)keys_shape[1] + kv_head;
    const long at = (head * (GROUP * QLEN) + row) * SPLITS + split;
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
    const float share = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll 1
    for (int column = 2 * thread_index; column < DV; column += 2 * SIMDGROUPS * 32) {
      float2 total = float2(0.0f);
#pragma unroll
      for (int s = 0; s < SIMDGROUPS; ++s) {
        total.x += columns[s * DV + column];
        total.y += columns[s * DV + column + 1];
      }
      *(device vec<T, 2>*)(partial + at * DV + column) =
          vec<T, 2>(T(total.x * share), T(total.y * share));
    }
    if (thread_index == 0) {
      split_tops[at] = top;
      split_sums[at] = sum;
    }
  }
}

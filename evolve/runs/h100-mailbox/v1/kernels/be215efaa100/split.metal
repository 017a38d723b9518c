// First of two launches: one threadgroup takes ROWS query rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes DV sums, the top and the sum of weights a row for
// combine.metal.
constexpr int ROW_TILES = (GROUP * QLEN + ROWS - 1) / ROWS;
constexpr int COLUMNS = own_elements<T, DV, LANES>();
threadgroup float tops[SIMDGROUPS * ROWS];
threadgroup float sums[SIMDGROUPS * ROWS];
threadgroup float columns[ROWS * SIMDGROUPS * DV];

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int thread_index = simdgroup * 32 + lane;
const int kv_head = threadgroup_position_in_grid.y / ROW_TILES;
const int row0 = threadgroup_position_in_grid.y % ROW_TILES * ROWS;
const int batch = threadgroup_position_in_grid.z / SPLITS;
const int split = threadgroup_position_in_grid.z % SPLITS;

State<ROWS, COLUMNS> state;
attend<T, D, DV, GROUP, QLEN, MASK, ROWS, LANES, KEYS, UNROLL>(
    state, queries, queries_strides, keys, keys_strides, values, values_strides, mask,
    mask_strides, scale[0], keys_shape[2], batch, kv_head, row0, split * SIMDGROUPS + simdgroup,
    SPLITS * SIMDGROUPS, lane);
if (lane == 0) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    tops[simdgroup * ROWS + r] = state.top[r];
    sums[simdgroup * ROWS + r] = state.sum[r];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
for (int r = 0; r < ROWS; ++r) {
  lay_out<T, DV, LANES, ROWS, SIMDGROUPS, COLUMNS>(state, r, tops, columns + r * SIMDGROUPS * DV,
                                                   simdgroup, lane);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
const long head = batch * (long)keys_shape[1] + kv_head;
// All rows at once: two barriers, and every thread has work.
for (int i = thread_index; i < ROWS * DV; i += SIMDGROUPS * 32) {
  const int r = i / DV;
  const int column = i % DV;
  if (row0 + r < GROUP * QLEN) {
    const long at = (head * (GROUP * QLEN) + row0 + r) * SPLITS + split;
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < SIMDGROUPS; ++s) {
      sum += columns[(r * SIMDGROUPS + s) * DV + column];
    }
    partial[at * (DV + 2) + column] = sum;
  }
}
if (thread_index < ROWS && row0 + thread_index < GROUP * QLEN) {
  const int r = thread_index;
  const long at = (head * (GROUP * QLEN) + row0 + r) * SPLITS + split;
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
  partial[at * (DV + 2) + DV] = top;
  partial[at * (DV + 2) + DV + 1] = sum;
}

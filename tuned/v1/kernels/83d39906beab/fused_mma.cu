// The only launch where one block a row is too few: SPLITS blocks take interleaved shares of the
// keys and leave a record each. Of every MEMBERS of them the last to come adds up their records,
// into a record of the group; of the groups the last to come adds up theirs and writes the result.
// So groups are added up side by side. Where there is one group, its last block writes the result.
// Nobody waits: blocks need not run at the same time.
//
// comes_last is true once a counter: a group's record, at a place of its own, is written by one
// block and counted once. A group's counter lies behind the record of its first split, the groups'
// counter behind the first group's record.
constexpr int ROWS = GROUP * QLEN;
constexpr int HELD = ROWS < 16 * TILES ? ROWS : 16 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 16 * TILES - 1) / (16 * TILES);
constexpr int RECORD = HELD * DV + (2 * HELD + 5) / 4 * 4;  // sums, top and sum a row, a counter
constexpr int GROUPS = (SPLITS + MEMBERS - 1) / MEMBERS;
__shared__ __align__(16) Shared<T, TILES, WARPS, KEYS> shared;
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 16 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];
float* const records =
    scratch + (int64_t(batch) * gridDim.y + blockIdx.y) * (SPLITS + GROUPS) * RECORD;
const int group = split / MEMBERS;
const auto counter = [&](int record) {
  return reinterpret_cast<unsigned long long*>(
      records + int64_t(record) * RECORD + HELD * (DV + 2));
};
if (threadIdx.x == 0) {
  early_start(counter(group * MEMBERS));
  if (GROUPS > 1 && split == 0) {
    early_start(counter(SPLITS));
  }
}

Accumulator<DV / WARPS, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES, WARPS, KEYS, true>(
    state, shared, queries, queries_strides, keys, keys_strides, keys, keys_strides, mask,
    mask_strides, scale[0], kv_len, batch, kv_head, row0, split, SPLITS, warp, lane);
each_octet(state, warp, lane, [&](int row, int column, const float (&octet)[8]) {
  if (row < HELD) {
    float* const to = records + int64_t(split) * RECORD;
    float4* to4 = reinterpret_cast<float4*>(to + row * DV + column);
    to4[0] = make_float4(octet[0], octet[1], octet[2], octet[3]);
    to4[1] = make_float4(octet[4], octet[5], octet[6], octet[7]);
    if (column == 0) {
      *reinterpret_cast<float2*>(to + HELD * DV + 2 * row) =
          make_float2(shared.top[row], shared.sum[row]);
    }
  }
});

const auto last_of = [&](int record, int number) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = comes_last(counter(record), number);
  }
  __syncthreads();
  return last;
};
const int rows = min(HELD, ROWS - row0);
const int members = min(MEMBERS, SPLITS - group * MEMBERS);
if (!last_of(group * MEMBERS, members)) {
  return;
}
const float* from = records;
if constexpr (GROUPS > 1) {
  float* const to = records + int64_t(SPLITS + group) * RECORD;
  add_records<MEMBERS, RECORD, HELD, DV, WARPS * 32>(
      records + int64_t(group) * MEMBERS * RECORD, members, rows,
      [&](int row, int at, float top, float sum, const float (&total)[4]) {
        *reinterpret_cast<float4*>(to + 4 * at) =
            make_float4(total[0], total[1], total[2], total[3]);
        if (at % (DV / 4) == 0) {
          *reinterpret_cast<float2*>(to + HELD * DV + 2 * row) = make_float2(top, sum);
        }
      });
  if (!last_of(SPLITS, GROUPS)) {
    return;
  }
  from += int64_t(SPLITS) * RECORD;
}
add_records<(GROUPS > 1 ? GROUPS : SPLITS), RECORD, HELD, DV, WARPS * 32>(
    from, GROUPS > 1 ? GROUPS : SPLITS, rows,
    [&](int row, int at, float top, float sum, const float (&total)[4]) {
      const int head = kv_head * GROUP + (row0 + row) / QLEN;
      const int column = at % (DV / 4) * 4;
      const float factor = share<SINKS>(top, sum, sinks, head);
      T* const to =
          out + ((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row0 + row) * DV + column;
      *reinterpret_cast<uint2*>(to) = make_uint2(
          bits(T(total[0] * factor), T(total[1] * factor)),
          bits(T(total[2] * factor), T(total[3] * factor)));
      if (factor < 0.0f) {
#pragma unroll 1
        for (int e = 0; e < 4; ++e) {
          to[e] = T(blind_row<MASK>(
              keys + batch * keys_strides[0] + kv_head * keys_strides[1] +
              (column + e) * keys_strides[3],
              keys_strides[2],
              mask + batch * mask_strides[0] + head * mask_strides[1] +
              (row0 + row) % QLEN * mask_strides[2],
              mask_strides[3], kv_len));
        }
      }
    });

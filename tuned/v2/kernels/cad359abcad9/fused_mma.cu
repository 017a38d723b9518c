// The only launch where one block a row is too few: SPLITS blocks take interleaved shares of the
// keys and leave a record each, and the last of them to come adds the records up. Where SHARED and
// where all blocks of the grid can run at once, each adds up a part, some columns, as soon as the
// last has come. They wait for that, but not for ever: where one has left, the last adds up all
// parts, in the same order, so that what comes out is the same to the bit.
constexpr int ROWS = GROUP * QLEN;
constexpr int ALL_PARTS = -1;
constexpr int NO_PART = -2;
constexpr int HELD = ROWS < 16 * TILES ? ROWS : 16 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 16 * TILES - 1) / (16 * TILES);
constexpr int RECORD = HELD * DV + (2 * HELD + 5) / 4 * 4;  // sums, top and sum a row, a counter
__shared__ __align__(16) Shared<T, TILES, WARPS, KEYS> shared;
__shared__ int part;  // of SPLITS; ALL_PARTS, or NO_PART
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 16 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];
float* const records =
    scratch + (int64_t(batch) * gridDim.y + blockIdx.y) * SPLITS * RECORD;
unsigned long long* const counter =
    reinterpret_cast<unsigned long long*>(records + HELD * (DV + 2));
if (threadIdx.x == 0) {
  early_start(counter);
}

Accumulator<DV / WARPS, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES, WARPS, KEYS, LATENT>(
    state, shared, queries, queries_strides, keys, keys_strides, values, values_strides,
    mask, mask_strides, scale[0], kv_len, batch, kv_head, row0, split, SPLITS, warp, lane);
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

const bool in_parts = SHARED && at_once();
__syncthreads();
if (threadIdx.x == 0) {
  const int number = come(counter);
  if (number == SPLITS - 1) {
    part = call_all(counter) && in_parts ? number : ALL_PARTS;
  } else {
    part = in_parts && hear_call(counter) ? number : NO_PART;
  }
}
__syncthreads();
if (part == NO_PART) {
  return;
}
const int rows = min(HELD, ROWS - row0);
const auto write = [&](int row, int at, float top, float sum, const float (&total)[4]) {
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
          values + batch * values_strides[0] + kv_head * values_strides[1] +
          (column + e) * values_strides[3],
          values_strides[2],
          mask + batch * mask_strides[0] + head * mask_strides[1] +
          (row0 + row) % QLEN * mask_strides[2],
          mask_strides[3], kv_len));
    }
  }
};
if (!in_parts) {
  add_part<SPLITS, 1, RECORD, HELD, DV, WARPS>(records, 0, rows, shared.partial, write);
  return;
}
const int first = part == ALL_PARTS ? 0 : part;
const int last = part == ALL_PARTS ? SPLITS - 1 : part;
#pragma unroll 1
for (int i = first; i <= last; ++i) {
  add_part<SPLITS, SPLITS, RECORD, HELD, DV, WARPS>(records, i, rows, shared.partial, write);
  __syncthreads();
}

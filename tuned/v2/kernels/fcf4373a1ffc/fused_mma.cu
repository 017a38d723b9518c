// The only launch where one block a row is too few: SPLITS blocks take interleaved shares of the
// keys, and the one that finds all others done combines them.
//
// Each block leaves its record in `scratch` and then raises its flag there. The scratch is not
// initialised: a raised flag is a pair of NaNs that no arithmetic makes, and the block that
// combines lowers the flags again, so that recycled memory holds none. Two blocks may both find
// all flags raised; both then write the same values.
constexpr int ROWS = GROUP * QLEN;
constexpr int HELD = ROWS < 8 * TILES ? ROWS : 8 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 8 * TILES - 1) / (8 * TILES);
// A block's record: DV sums of every row, top and sum of weights of every row, and the flag.
constexpr int STATS = HELD * DV;
constexpr int RECORD = (HELD * (DV + 2) + 5) / 4 * 4;
__shared__ float tops[WARPS * 8 * TILES];
__shared__ float sums[WARPS * 8 * TILES];
constexpr int MASK_ROWS = MASK > CAUSAL_MASK ? (HELD + 1) / 2 * 2 : 0;
constexpr int RING = Layout<BITS, QGROUP, D, DV, MASK_ROWS>::ring(STAGES);
constexpr int OUTS = HELD * DV * 4;
__shared__ __align__(128) unsigned char memory[WARPS * (RING > OUTS ? RING : OUTS)];
float* const outs = reinterpret_cast<float*>(memory);
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 8 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];

const Operand<T> k = {keys, keys_strides, key_scales, key_scales_strides, key_biases,
                      key_biases_strides};
const Operand<T> v = {values, values_strides, value_scales, value_scales_strides, value_biases,
                      value_biases_strides};
Accumulator<DV, TILES> state;
attend<BITS, QGROUP, D, DV, GROUP, QLEN, MASK, TILES, STAGES, MASK_ROWS>(
    state, memory + warp * RING, queries, queries_strides, k, v, mask, mask_strides, scale[0],
    kv_len, batch, kv_head, row0, split * WARPS + warp, SPLITS * WARPS, lane);
float* const records = scratch +
    (int64_t(batch) * gridDim.y + blockIdx.y) * SPLITS * RECORD;
merge<DV, HELD, TILES, WARPS>(
    state, tops, sums, outs, warp, lane,
    [&](int row, int column, float total, float top, float sum) {
      float* const record = records + split * RECORD;
      record[row * DV + column] = total;
      if (column < 2) {
        record[STATS + 2 * row + column] = column ? sum : top;
      }
    });

constexpr unsigned long long RAISED = 0x7fa5c3e1ffb7d219ull;
__shared__ bool complete;
__syncthreads();
if (warp == 0) {
  const auto flag = [&](int s) {
    return reinterpret_cast<unsigned long long*>(records + (s + 1) * RECORD - 2);
  };
  if (lane == 0) {
    __threadfence();
    atomicExch(flag(split), RAISED);
  }
  __syncwarp();
  __threadfence();  // between own flag and the others': of all blocks at least one sees them all
  bool raised = true;
  for (int s = lane; s < SPLITS; s += 32) {
    raised = raised && *const_cast<volatile unsigned long long*>(flag(s)) == RAISED;
  }
  raised = __all_sync(0xffffffffu, raised);
  complete = raised;
  if (raised) {
    for (int s = lane; s < SPLITS; s += 32) {
      *flag(s) = 0;
    }
  }
}
__syncthreads();
if (!complete) {
  return;
}
__threadfence();

// Four columns of a row are an item; PARTS threads take shares of the records of one item.
constexpr int ITEMS = HELD * DV / 4;
constexpr int PARTS = WARPS * 32 > ITEMS ? WARPS * 32 / ITEMS : 1;
constexpr int SHARE = (SPLITS + PARTS - 1) / PARTS;
constexpr int AHEAD = SHARE < 12 ? SHARE : 12;  // records under way at a time
struct Part {
  float top, sum, total[4];
};
// Adds `other` to `part`.
const auto join = [](Part& part, const Part& other) {
  const float top = fmaxf(part.top, other.top);
  const float fade = power2(part.top - top);
  const float weight = power2(other.top - top);
  part.top = top;
  part.sum = part.sum * fade + other.sum * weight;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    part.total[i] = part.total[i] * fade + other.total[i] * weight;
  }
};
Part* const parts = reinterpret_cast<Part*>(memory);  // the rings are free
static_assert(sizeof(memory) >= PARTS * ITEMS * sizeof(Part), "no room for the parts");
for (int at = threadIdx.x; at < PARTS * ITEMS; at += WARPS * 32) {
  const float* const sums_at = records + at % ITEMS * 4;
  const float* const stats_at = records + STATS + at % ITEMS * 4 / DV * 2;
  Part part = {LOWEST_TOP, 0.0f, {}};
#pragma unroll 1
  for (int s0 = at / ITEMS; s0 < SPLITS; s0 += AHEAD * PARTS) {
    Part ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int record = min(s0 + i * PARTS, SPLITS - 1) * RECORD;
      const float4 total = __ldcg(reinterpret_cast<const float4*>(sums_at + record));
      const float2 stats = __ldcg(reinterpret_cast<const float2*>(stats_at + record));
      ahead[i] = {stats.x, stats.y, {total.x, total.y, total.z, total.w}};
    }
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      if (s0 + i * PARTS < SPLITS) {
        join(part, ahead[i]);
      }
    }
  }
  parts[at] = part;
}
__syncthreads();

#pragma unroll 1
for (int at = threadIdx.x; at < HELD * DV; at += WARPS * 32) {
  const int column = at % DV;
  float top = LOWEST_TOP;
  float sum = 0.0f;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    top = fmaxf(top, parts[i * ITEMS + at / 4].top);
  }
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    const Part& part = parts[i * ITEMS + at / 4];
    const float weight = power2(part.top - top);
    sum += part.sum * weight;
    total += part.total[at % 4] * weight;
  }
  const int row = row0 + at / DV;
  if (row < ROWS) {
    const int head = kv_head * GROUP + row / QLEN;
    out[((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row) * DV + column] =
        T(sum != 0.0f ? total / sum
                      : blind_row<BITS, QGROUP, MASK>(
                            v, batch, kv_head, column,
                            mask + batch * mask_strides[0] + head * mask_strides[1] +
                                row % QLEN * mask_strides[2],
                            mask_strides[3], kv_len));
  }
}

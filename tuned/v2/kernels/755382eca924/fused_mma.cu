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
constexpr int RECORD = HELD * (DV + 2) + 2;  // of one block: by row DV sums, top and sum of weights
__shared__ float tops[WARPS * 8 * TILES];
__shared__ float sums[WARPS * 8 * TILES];
__shared__ __align__(16) float outs[WARPS * HELD * DV];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 8 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];

Accumulator<DV, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES>(
    state, queries, queries_strides, keys, keys_strides, values, values_strides, mask, mask_strides,
    scale[0], kv_len, batch, kv_head, row0, split * WARPS + warp, SPLITS * WARPS, lane);
float* const records = scratch +
    (int64_t(batch) * gridDim.y + blockIdx.y) * SPLITS * RECORD;
merge<DV, HELD, TILES, WARPS>(
    state, tops, sums, outs, warp, lane,
    [&](int row, int column, float total, float top, float sum) {
      float* const record = records + split * RECORD + row * (DV + 2);
      record[column] = total;
      if (column < 2) {
        record[DV + column] = column ? sum : top;
      }
    });

constexpr unsigned long long RAISED = 0x7fa5c3e1ffb7d219ull;
__shared__ bool complete;
__syncthreads();
if (warp == 0) {
  const auto flag = [&](int s) {
    return reinterpret_cast<unsigned long long*>(records + s * RECORD + HELD * (DV + 2));
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

#pragma unroll 1
for (int at = threadIdx.x; at < HELD * DV; at += WARPS * 32) {
  const int column = at % DV;
  const float* const mine = records + at / DV * (DV + 2);
  float top = LOWEST_TOP;
  float sum = 0.0f;
  float total = 0.0f;
#pragma unroll 1
  for (int s0 = 0; s0 < SPLITS; s0 += 16) {
    float tops16[16];
    float sums16[16];
    float outs16[16];
    float next = top;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float* const record = mine + min(s0 + i, SPLITS - 1) * RECORD;
      outs16[i] = __ldcg(record + column);
      tops16[i] = __ldcg(record + DV);
      sums16[i] = __ldcg(record + DV + 1);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      tops16[i] = s0 + i < SPLITS ? tops16[i] : LOWEST_TOP * 2.0f;
      next = fmaxf(next, tops16[i]);
    }
    total *= power2(top - next);
    sum *= power2(top - next);
    top = next;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float weight = power2(tops16[i] - top);
      total += outs16[i] * weight;
      sum += sums16[i] * weight;
    }
  }
  const int row = row0 + at / DV;
  if (row < ROWS) {
    const int head = kv_head * GROUP + row / QLEN;
    out[((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row) * DV + column] =
        T(settle<MASK, SINKS>(
            total, top, sum, sinks, head,
            values + batch * values_strides[0] + kv_head * values_strides[1] +
            column * values_strides[3],
            values_strides[2],
            mask + batch * mask_strides[0] + head * mask_strides[1] + row % QLEN * mask_strides[2],
            mask_strides[3], kv_len));
  }
}

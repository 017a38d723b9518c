// The only launch where one block a row is too few: SPLITS blocks take interleaved shares of the
// keys, and the one that finds all others done combines them.
//
// Each block leaves its record in `scratch` and then raises its flag there. The scratch is not
// initialised: a raised flag is a pair of NaNs that no arithmetic makes, and the block that
// combines lowers the flags again, so that recycled memory holds none. Two blocks may both find
// all flags raised; both then write the same values.
constexpr int ROWS = GROUP * QLEN;
constexpr int HELD = ROWS < 16 * TILES ? ROWS : 16 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 16 * TILES - 1) / (16 * TILES);
constexpr int RECORD = HELD * DV + (2 * HELD + 5) / 4 * 4;  // sums, then top and sum a row, a flag
__shared__ __align__(16) Shared<T, TILES, WARPS, SPLITS> shared;
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 16 * TILES;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;
const int kv_len = keys_shape[2];

Accumulator<DV / WARPS, TILES> state;
attend<T, D, DV, GROUP, QLEN, MASK, TILES, WARPS, true>(
    state, shared, queries, queries_strides, keys, keys_strides, keys, keys_strides, mask,
    mask_strides, scale[0], kv_len, batch, kv_head, row0, split, SPLITS, warp, lane);
float* const records = scratch + (int64_t(batch) * gridDim.y + blockIdx.y) * SPLITS * RECORD;
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

constexpr unsigned long long RAISED = 0x7fa5c3e1ffb7d219ull;
__shared__ bool complete;
__syncthreads();
if (warp == 0) {
  const auto flag = [&](int s) {
    return reinterpret_cast<unsigned long long*>(
        records + int64_t(s) * RECORD + HELD * (DV + 2));
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

// What each split counts in a row, in place of the partial sums.
float* const counts = shared.partial;
#pragma unroll 1
for (int row = warp; row < HELD; row += WARPS) {
  const float* const own = records + HELD * DV + 2 * row;
  float top = LOWEST_TOP;
  for (int s = lane; s < SPLITS; s += 32) {
    top = fmaxf(top, __ldcg(own + int64_t(s) * RECORD));
  }
#pragma unroll
  for (int away = 16; away > 0; away /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, away));
  }
  float sum = 0.0f;
  for (int s = lane; s < SPLITS; s += 32) {
    const float count = power2(__ldcg(own + int64_t(s) * RECORD) - top);
    counts[row * SPLITS + s] = count;
    sum += count * __ldcg(own + int64_t(s) * RECORD + 1);
  }
#pragma unroll
  for (int away = 16; away > 0; away /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, away);
  }
  if (lane == 0) {
    const int head = kv_head * GROUP + min(row0 + row, ROWS - 1) / QLEN;
    shared.fade[row] = share<SINKS>(top, sum, sinks, head);
  }
}
__syncthreads();

#pragma unroll 1
for (int at = threadIdx.x; at < HELD * DV / 4; at += WARPS * 32) {
  const int row = at / (DV / 4);
  const int column = at % (DV / 4) * 4;
  if (row0 + row >= ROWS) {
    break;
  }
  float total[4] = {};
#pragma unroll 1
  for (int s0 = 0; s0 < SPLITS; s0 += 8) {
    float4 x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = __ldcg(reinterpret_cast<const float4*>(
          records + int64_t(min(s0 + i, SPLITS - 1)) * RECORD + 4 * at));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float count = s0 + i < SPLITS ? counts[row * SPLITS + min(s0 + i, SPLITS - 1)] : 0.0f;
      total[0] = fmaf(x[i].x, count, total[0]);
      total[1] = fmaf(x[i].y, count, total[1]);
      total[2] = fmaf(x[i].z, count, total[2]);
      total[3] = fmaf(x[i].w, count, total[3]);
    }
  }
  const int head = kv_head * GROUP + (row0 + row) / QLEN;
  const float factor = shared.fade[row];
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
}

// The only launch where there are too few rows: SPLITS blocks take interleaved shares of the keys,
// and the one that finds all others done combines them.
//
// Each block leaves its record in `scratch` and then raises its flag there. The scratch is not
// initialised: a raised flag is a pair of NaNs that no arithmetic makes, and the block that
// combines lowers the flags again, so that recycled memory holds none. Two blocks may both find
// all flags raised; both then write the same values.
constexpr int HELD = 16 * ROW_WARPS;
constexpr int RECORD = HELD * (DV + 2) + 4;  // sums, then top and sum a row, then a flag
__shared__ __align__(16) char shared[shared_bytes<D, DV, ROW_WARPS, KEY_WARPS, KEYS>()];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int q_len = queries_shape[2];
const int kv_len = keys_shape[2];
const int rows = GROUP * q_len;
const int row0 = blockIdx.x * HELD;
const int kv_head = blockIdx.y;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;

Accumulator<DV> state;
attend<T, D, DV, GROUP, MASK, ROW_WARPS, KEY_WARPS, KEYS, SPLITS>(
    state, reinterpret_cast<T*>(shared), queries, queries_strides, keys, keys_strides, values,
    values_strides, mask, mask_strides, scale[0], q_len, kv_len, batch, kv_head, row0, split, warp,
    lane);
merge<DV, ROW_WARPS, KEY_WARPS>(state, reinterpret_cast<float*>(shared), warp, lane);
float* const records = scratch +
    ((int64_t(batch) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * SPLITS * RECORD;
if (warp < ROW_WARPS) {
  float* const record = records + int64_t(split) * RECORD;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp * 16 + 8 * h + lane / 4;
#pragma unroll
    for (int i = 0; i < DV / 8; ++i) {
      *reinterpret_cast<float2*>(record + row * DV + 8 * i + lane % 4 * 2) =
          make_float2(state.out[i][2 * h], state.out[i][2 * h + 1]);
    }
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(record + HELD * DV + 2 * row) =
          make_float2(state.top[h], state.sum[h]);
    }
  }
}

constexpr unsigned long long RAISED = 0x7fa5c3e1ffb7d219ull;
bool* const complete = reinterpret_cast<bool*>(shared);
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
  if (lane == 0) {
    *complete = raised;
  }
  if (raised) {
    for (int s = lane; s < SPLITS; s += 32) {
      *flag(s) = 0;
    }
  }
}
__syncthreads();
if (!*complete) {
  return;
}
__threadfence();
__syncthreads();

// What each split counts in a row, and the factor of the row's sum, where the tiles were.
static_assert(HELD * (SPLITS + 1) * 4 <= shared_bytes<D, DV, ROW_WARPS, KEY_WARPS, KEYS>(),
              "the counts must fit where the tiles were");
constexpr int WARPS = ROW_WARPS * KEY_WARPS;
float* const factors = reinterpret_cast<float*>(shared);
float* const counts = factors + HELD;
#pragma unroll 1
for (int row = warp; row < HELD && row0 + row < rows; row += WARPS) {
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
    factors[row] = share<MASK, SINKS>(top, sum, sinks, kv_head * GROUP + (row0 + row) / q_len);
  }
}
__syncthreads();

#pragma unroll 1
for (int at = threadIdx.x; at < HELD * DV / 4; at += WARPS * 32) {
  const int held = at / (DV / 4);
  const int column = at % (DV / 4) * 4;
  const int row = row0 + held;
  if (row >= rows) {
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
      const float count = s0 + i < SPLITS ? counts[held * SPLITS + min(s0 + i, SPLITS - 1)] : 0.0f;
      total[0] = fmaf(x[i].x, count, total[0]);
      total[1] = fmaf(x[i].y, count, total[1]);
      total[2] = fmaf(x[i].z, count, total[2]);
      total[3] = fmaf(x[i].w, count, total[3]);
    }
  }
  const float factor = factors[held];
  T* const to = out + ((batch * int64_t(keys_shape[1]) + kv_head) * rows + row) * DV + column;
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(total[0] * factor, total[1] * factor, T()),
                                             pack(total[2] * factor, total[3] * factor, T()));
  if (MASK == ADDITIVE_MASK && factor < 0.0f) {
    const int head = kv_head * GROUP + row / q_len;
#pragma unroll 1
    for (int e = 0; e < 4; ++e) {
      to[e] = T(blind_row<MASK>(
          values + batch * values_strides[0] + kv_head * values_strides[1] +
          (column + e) * values_strides[3],
          values_strides[2],
          mask + batch * mask_strides[0] + head * mask_strides[1] + row % q_len * mask_strides[2],
          mask_strides[3], kv_len));
    }
  }
}

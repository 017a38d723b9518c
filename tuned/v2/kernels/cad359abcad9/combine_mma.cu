// Second of two launches: one block combines 128 columns of one query row over SPLITS partial
// results. Its warps share the splits, four columns a lane, and read all at once.
constexpr int EACH = (SPLITS + WARPS - 1) / WARPS;  // splits of a warp: warp, warp + WARPS, ...
constexpr int COUNTS = (SPLITS + 31) / 32;
constexpr unsigned ALL = 0xffffffffu;
static_assert(32 % WARPS == 0, "a warp's splits lie in whole rounds of lanes");
__shared__ float4 others[WARPS][32];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int row = blockIdx.y;
const int column = blockIdx.x * 128 + 4 * lane;
const float* const from = partial + int64_t(row) * SPLITS * DV + min(column, DV - 4);

float4 x[EACH];
#pragma unroll
for (int i = 0; i < EACH; ++i) {
  const int split = min(warp + i * WARPS, SPLITS - 1);
  x[i] = __ldcg(reinterpret_cast<const float4*>(from + split * DV));
}

// What each split counts: lane's are lane, lane + 32, ...
const float2* const own = reinterpret_cast<const float2*>(stats) + int64_t(row) * SPLITS;
float2 stat[COUNTS];
float top = LOWEST_TOP;
#pragma unroll
for (int j = 0; j < COUNTS; ++j) {
  stat[j] = __ldcg(own + min(lane + 32 * j, SPLITS - 1));
  top = fmaxf(top, stat[j].x);
}
#pragma unroll
for (int away = 16; away > 0; away /= 2) {
  top = fmaxf(top, __shfl_xor_sync(ALL, top, away));
}
float counts[COUNTS];
float sum = 0.0f;
#pragma unroll
for (int j = 0; j < COUNTS; ++j) {
  counts[j] = lane + 32 * j < SPLITS ? power2(stat[j].x - top) : 0.0f;
  sum += counts[j] * stat[j].y;
}
#pragma unroll
for (int away = 16; away > 0; away /= 2) {
  sum += __shfl_xor_sync(ALL, sum, away);
}

float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
const auto add = [&](const float4& term, float count) {
  total.x = fmaf(term.x, count, total.x);
  total.y = fmaf(term.y, count, total.y);
  total.z = fmaf(term.z, count, total.z);
  total.w = fmaf(term.w, count, total.w);
};
#pragma unroll
for (int i = 0; i < EACH; ++i) {
  add(x[i], __shfl_sync(ALL, counts[i * WARPS / 32], warp + i * WARPS % 32));
}
if constexpr (WARPS > 1) {
  others[warp][lane] = total;
  __syncthreads();
  if (warp > 0) {
    return;
  }
#pragma unroll
  for (int w = 1; w < WARPS; ++w) {
    add(others[w][lane], 1.0f);
  }
}
if (column >= DV) {
  return;
}
const int position = row % queries_shape[2];
const int head = row / queries_shape[2] % queries_shape[1];
const int batch = row / queries_shape[2] / queries_shape[1];
const float factor = share<SINKS>(top, sum, sinks, head);
T* const to = out + int64_t(row) * DV + column;
*reinterpret_cast<uint2*>(to) = make_uint2(bits(T(total.x * factor), T(total.y * factor)),
                                           bits(T(total.z * factor), T(total.w * factor)));
if (factor < 0.0f) {
#pragma unroll 1
  for (int e = 0; e < 4; ++e) {
    to[e] = T(blind_row<MASK>(
        values + batch * values_strides[0] + head / GROUP * values_strides[1] +
        (column + e) * values_strides[3],
        values_strides[2],
        mask + batch * mask_strides[0] + head * mask_strides[1] + position * mask_strides[2],
        mask_strides[3], keys_shape[2]));
  }
}

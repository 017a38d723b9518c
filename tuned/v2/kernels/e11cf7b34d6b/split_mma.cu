// First of two launches: one block takes 16 ROW_WARPS rows of one KV head over one of SPLITS
// interleaved shares of the keys, and writes DV sums, and top and sum of weights, a row for
// combine_mma.cu.
__shared__ __align__(16) char shared[shared_bytes<D, DV, ROW_WARPS, KEY_WARPS, KEYS>()];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int q_len = queries_shape[2];
const int kv_len = keys_shape[2];
const int rows = GROUP * q_len;
const int row0 = blockIdx.x * 16 * ROW_WARPS;
const int kv_head = blockIdx.y;
const int batch = blockIdx.z / SPLITS;
const int split = blockIdx.z % SPLITS;

Accumulator<DV> state;
attend<T, D, DV, GROUP, MASK, ROW_WARPS, KEY_WARPS, KEYS, SPLITS>(
    state, reinterpret_cast<T*>(shared), queries, queries_strides, keys, keys_strides, values,
    values_strides, mask, mask_strides, scale[0], q_len, kv_len, batch, kv_head, row0, split, warp,
    lane);
merge<DV, ROW_WARPS, KEY_WARPS>(state, reinterpret_cast<float*>(shared), warp, lane);
#pragma unroll
for (int h = 0; h < 2; ++h) {
  const int row = row0 + warp * 16 + 8 * h + lane / 4;
  if (warp < ROW_WARPS && row < rows) {
    const int64_t at =
        ((batch * int64_t(keys_shape[1]) + kv_head) * rows + row) * SPLITS + split;
#pragma unroll
    for (int i = 0; i < DV / 8; ++i) {
      *reinterpret_cast<float2*>(partial + at * DV + 8 * i + lane % 4 * 2) =
          make_float2(state.out[i][2 * h], state.out[i][2 * h + 1]);
    }
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(stats + at * 2) = make_float2(state.top[h], state.sum[h]);
    }
  }
}

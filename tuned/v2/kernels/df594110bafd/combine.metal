// Second of two launches: one threadgroup a query row, one thread two columns, over SPLITS
// partial results.
constexpr int OWN = (SPLITS + 31) / 32;
const int lane = thread_index_in_simdgroup;
const int column = 2 * thread_position_in_threadgroup.x;
const int row = threadgroup_position_in_grid.y;
const int position = row % QLEN;
const int head = row / QLEN % queries_shape[1];
const int batch = row / QLEN / queries_shape[1];
const device T* from = partial + (long)row * SPLITS * DV;

float tops[OWN];
float sums[OWN];
float top = FLOOR;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int split = min(lane + 32 * j, SPLITS - 1);
  tops[j] = split_tops[(long)row * SPLITS + split];
  sums[j] = lane + 32 * j < SPLITS ? split_sums[(long)row * SPLITS + split] : 0.0f;
  top = max(top, tops[j]);
}
top = simd_max(top);
float weights[OWN];
float sum = 0.0f;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  weights[j] = fast::exp2(tops[j] - top) * sums[j];
  sum += weights[j];
}
sum = simd_sum(sum);

float2 total = float2(0.0f);
#pragma unroll
for (int split = 0; split < SPLITS; ++split) {
  const float weight = simd_shuffle(weights[split / 32], split % 32);
  if (column < DV) {
    const vec<T, 2> value = *(const device vec<T, 2>*)(from + split * DV + column);
    total.x = fma(weight, float(value.x), total.x);
    total.y = fma(weight, float(value.y), total.y);
  }
}
if (column < DV) {
  device T* to = out + (long)row * DV + column;
  *(device vec<T, 2>*)to = vec<T, 2>(T(total.x / sum), T(total.y / sum));
  for (int e = 0; sum == 0.0f && e < 2; ++e) {
    to[e] = T(blind<T, BITS, QGROUP, MASK>(
        operand(values, values_strides, value_scales, value_scales_strides, value_biases,
                value_biases_strides),
        batch, head / GROUP, column + e,
        mask + batch * mask_strides[0] + head * mask_strides[1] + position * mask_strides[2],
        mask_strides[3], keys_shape[2]));
  }
}

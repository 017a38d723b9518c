// Second of two launches: one threadgroup a query row, one thread a column, over SPLITS partial
// results.
constexpr int OWN = (SPLITS + 31) / 32;
const int lane = thread_index_in_simdgroup;
const int column = thread_position_in_threadgroup.x;
const int row = threadgroup_position_in_grid.y;
const int position = row % QLEN;
const int head = row / QLEN % queries_shape[1];
const int batch = row / QLEN / queries_shape[1];
const device float* from = partial + (long)row * SPLITS * (DV + 2);

float tops[OWN];
float sums[OWN];
float top = FLOOR;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int split = min(lane + 32 * j, SPLITS - 1);
  tops[j] = from[split * (DV + 2) + DV];
  sums[j] = lane + 32 * j < SPLITS ? from[split * (DV + 2) + DV + 1] : 0.0f;
  top = max(top, tops[j]);
}
const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;
top = max(simd_max(top), own);
float weights[OWN];
float sum = 0.0f;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  weights[j] = fast::exp2(tops[j] - top);
  sum += weights[j] * sums[j];
}
sum = simd_sum(sum) + (SINKS ? fast::exp2(own - top) : 0.0f);

float total = 0.0f;
#pragma unroll
for (int split = 0; split < SPLITS; ++split) {
  const float value = from[split * (DV + 2) + min(column, DV - 1)];
  total = fma(simd_shuffle(weights[split / 32], split % 32), value, total);
}
if (column < DV) {
  total /= sum;
  if (sum == 0.0f) {
    total = blind<T, MASK>(
        values + batch * values_strides[0] + head / GROUP * values_strides[1] +
            column * values_strides[3],
        values_strides[2],
        mask + batch * mask_strides[0] + head * mask_strides[1] + position * mask_strides[2],
        mask_strides[3], keys_shape[2]);
  }
  out[(long)row * DV + column] = T(total);
}

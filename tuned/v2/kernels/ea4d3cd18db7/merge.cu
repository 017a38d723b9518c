// Joins the splits of one query head: thread d makes element d of its row.
const int d = threadIdx.x;
const int64_t row = int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
const float* stat = stats + row * SPLITS * 2;
const float* part = partial + row * SPLITS * D + d;
float top = -INFINITY;
#pragma unroll 16
for (int s = 0; s < SPLITS; ++s) {
  top = fmaxf(top, stat[2 * s]);
}
float sum = 0.0f;
float total = 0.0f;
if (top != -INFINITY) {
#pragma unroll 16
  for (int s = 0; s < SPLITS; ++s) {
    const float weight = exp2f(stat[2 * s] - top);
    sum += weight * stat[2 * s + 1];
    total += weight * part[s * D];
  }
}
out[row * D + d] = T(sum > 0.0f ? total / sum : 0.0f);

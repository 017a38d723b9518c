const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
if (at < int64_t(ROWS) * N) {
  float sum = 0.0f;
#pragma unroll
  for (int split = 0; split < SPLITS; ++split) {
    sum += parts[split * int64_t(ROWS) * N + at];
  }
  out[at] = T(sum);
}

// One warp makes one number of the result: a row of x times an output's row of weights. Lane l of
// its 32 takes the words l, l + 32, ... of that row.
constexpr int PER_WORD = 32 / BITS;
constexpr int WORDS = K / PER_WORD;
constexpr int GROUPS = K / GROUP;
constexpr uint32_t LOW_BITS = (1u << BITS) - 1;
const int lane = threadIdx.x;
const int output = blockIdx.x;
const int row = blockIdx.y;
const T* numbers = x + row / LENGTH * x_strides[0] + row % LENGTH * x_strides[1];

float sum = 0.0f;
for (int word = lane; word < WORDS; word += 32) {
  const uint32_t packed = weight[int64_t(output) * WORDS + word];
  for (int i = 0; i < PER_WORD; ++i) {
    const int k = word * PER_WORD + i;
    const int64_t group = int64_t(output) * GROUPS + k / GROUP;
    const float number = float((packed >> (BITS * i)) & LOW_BITS);
    sum += float(numbers[k * x_strides[2]]) * (number * float(scales[group]) + float(biases[group]));
  }
}
for (int step = 16; step > 0; step /= 2) {
  sum += __shfl_xor_sync(0xffffffff, sum, step);
}
if (lane == 0) {
  out[int64_t(row) * N + output] = T(sum);
}

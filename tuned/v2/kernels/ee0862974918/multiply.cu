constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
constexpr int GROUPS = K / GROUP;
constexpr int OUTPUTS = 16 * TILES;            // of a block
constexpr int SOME = CHUNK * 8 / BITS / GROUP;
constexpr int MEMBERS = SOME ? SOME : 1;       // groups of a chunk
__shared__ float sums[WARPS][OUTPUTS][8];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int g = lane / 4;
const int c = lane % 4;
const int first = blockIdx.x * OUTPUTS;

// Of this lane: a row of x, and outputs. What is beyond the last is read from it and not written.
const __nv_bfloat16* const row = x + min(g, ROWS - 1) * K + c * QUARTER;
int64_t outputs[TILES][2];
#pragma unroll
for (int t = 0; t < TILES; ++t) {
  outputs[t][0] = min(first + 16 * t + g, N - 1);
  outputs[t][1] = min(first + 16 * t + 8 + g, N - 1);
}

constexpr int SHARE = MEMBERS * 2;             // bytes of an output's scales for a chunk
float total[TILES][4] = {};
// Twice, so that no load waits for a branch: where something lies off, it is read in small pieces.
if ((reinterpret_cast<size_t>(x) | reinterpret_cast<size_t>(weight)) % 16 == 0 &&
    (reinterpret_cast<size_t>(scales) | reinterpret_cast<size_t>(biases)) % SHARE == 0) {
  add_up<true, GROUP, BITS, GROUPS, MEMBERS, WARPS, AHEAD>(total, row, weight, scales, biases,
                                                           outputs, warp, c);
} else {
  add_up<false, GROUP, BITS, GROUPS, MEMBERS, WARPS, AHEAD>(total, row, weight, scales, biases,
                                                            outputs, warp, c);
}
#pragma unroll
for (int t = 0; t < TILES; ++t) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[warp][16 * t + i / 2 * 8 + g][2 * c + i % 2] = total[t][i];
  }
}
__syncthreads();
for (int at = threadIdx.x; at < ROWS * OUTPUTS; at += 32 * WARPS) {
  const int result = at / OUTPUTS;
  const int output = at % OUTPUTS;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) {
    sum += sums[i][output][result];
  }
  if (first + output < N) {
    out[int64_t(result) * N + first + output] = T(sum);
  }
}

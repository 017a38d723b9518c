constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
constexpr int GROUPS = K / GROUP;
constexpr int OUTPUTS = 16 * TILES;            // of a block
constexpr int SOME = CHUNK * 8 / BITS / GROUP;
constexpr int MEMBERS = SOME ? SOME : 1;       // groups of a chunk
__shared__ float sums[WARPS][OUTPUTS][8];
__shared__ int sharing[ROWS];                  // the rows that go to this block's expert
__shared__ int count;
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int g = lane / 4;
const int c = lane % 4;
const int first = blockIdx.x * OUTPUTS;
const int own = blockIdx.y;

const uint32_t expert = indices[own];
if (warp == 0) {
  int found = 0;
#pragma unroll
  for (int begin = 0; begin < ROWS; begin += 32) {
    const bool same = begin + lane < ROWS && indices[min(begin + lane, ROWS - 1)] == expert;
    const uint32_t those = __ballot_sync(0xffffffffu, same);
    if (same) {
      sharing[found + __popc(those & ((1u << lane) - 1))] = begin + lane;
    }
    found += __popc(those);
  }
  if (lane == 0) {
    count = found;
  }
}
__syncthreads();
if (sharing[0] != own) {
  return;  // an expert's first row does the work of all
}

// Of this lane: outputs, among those of all experts. What is beyond the last is read from it and not
// written.
int64_t outputs[TILES][2];
#pragma unroll
for (int t = 0; t < TILES; ++t) {
  outputs[t][0] = int64_t(expert) * N + min(first + 16 * t + g, N - 1);
  outputs[t][1] = int64_t(expert) * N + min(first + 16 * t + 8 + g, N - 1);
}

constexpr int SHARE = MEMBERS * 2;             // bytes of an output's scales for a chunk
const bool wide = (reinterpret_cast<size_t>(x) | reinterpret_cast<size_t>(weight)) % 16 == 0 &&
                  (reinterpret_cast<size_t>(scales) | reinterpret_cast<size_t>(biases)) % SHARE == 0;
for (int begin = 0; begin < count; begin += 8) {
  const __nv_bfloat16* const row =
      x + int64_t(sharing[min(begin + g, count - 1)] / LENGTH) * K + c * QUARTER;
  float total[TILES][4] = {};
  // Twice, so that no load waits for a branch: where something lies off, it is read in small pieces.
  if (wide) {
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
  const int some = min(8, count - begin);
  for (int at = threadIdx.x; at < some * OUTPUTS; at += 32 * WARPS) {
    const int output = at % OUTPUTS;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) {
      sum += sums[i][output][at / OUTPUTS];
    }
    if (first + output < N) {
      out[int64_t(sharing[begin + at / OUTPUTS]) * N + first + output] = T(sum);
    }
  }
  __syncthreads();  // before the next rows' sums
}

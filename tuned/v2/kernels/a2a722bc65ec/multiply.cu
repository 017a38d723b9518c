constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
constexpr int WORDS = QUARTER * BITS / 32;
constexpr int PLANES = BITS / 4;
constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
constexpr int GROUPS = K / GROUP;
constexpr int OUTPUTS = 16 * TILES;            // of a block
constexpr int PAIRS = 32 / BITS / 2;           // in a word, of one plane
constexpr int HALF = 16 / BITS;                // from the first number of a pair to the second
constexpr int SOME = CHUNK * 8 / BITS / GROUP;
constexpr int MEMBERS = SOME ? SOME : 1;       // groups of a chunk
constexpr int CHUNKS = (GROUPS + MEMBERS - 1) / MEMBERS;
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

const bool x_wide = reinterpret_cast<size_t>(x) % 16 == 0;
const bool wide = reinterpret_cast<size_t>(weight) % 16 == 0;
constexpr int SHARE = MEMBERS * 2;             // bytes of an output's scales for a chunk
const bool aligned = GROUPS % MEMBERS == 0 && reinterpret_cast<size_t>(scales) % SHARE == 0 &&
                     reinterpret_cast<size_t>(biases) % SHARE == 0;
for (int begin = 0; begin < count; begin += 8) {
  const int row = sharing[min(begin + g, count - 1)];
  const __nv_bfloat16* const numbers_of_row = x + int64_t(row / LENGTH) * K + c * QUARTER;
  float total[TILES][4] = {};
#pragma unroll AHEAD
  for (int chunk = warp; chunk < CHUNKS; chunk += WARPS) {
    Shares<MEMBERS> shares[TILES][2][2];
    uint32_t words[TILES][2][MEMBERS][WORDS];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t at = outputs[t][i] * GROUPS + chunk * MEMBERS;
        shares[t][i][0].read(scales + at, aligned, GROUPS - chunk * MEMBERS);
        shares[t][i][1].read(biases + at, aligned, GROUPS - chunk * MEMBERS);
#pragma unroll
        for (int member = 0; member < MEMBERS; ++member) {
          if (GROUPS % MEMBERS == 0 || chunk * MEMBERS + member < GROUPS) {
            read_words<WORDS>(words[t][i][member], weight + (at + member) * (4 * WORDS) + c * WORDS,
                              wide);
          }
        }
      }
    }
#pragma unroll
    for (int member = 0; member < MEMBERS; ++member) {
      const int group = chunk * MEMBERS + member;
      if (GROUPS % MEMBERS == 0 || group < GROUPS) {
        uint32_t numbers[QUARTER / 2];
        read_numbers<QUARTER>(numbers, numbers_of_row + group * GROUP, x_wide);
        float ones[4] = {};
        float product[TILES][4] = {};
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
#pragma unroll
          for (int pair = 0; pair < PAIRS; pair += 2) {
            // Two pairs of x, as far apart as those of a word.
            const uint32_t near = numbers[(word * 32 / BITS + pair) / 2];
            const uint32_t far = numbers[(word * 32 / BITS + pair + HALF) / 2];
            const uint32_t b0 = __byte_perm(near, far, 0x5410);
            const uint32_t b1 = __byte_perm(near, far, 0x7632);
            const uint32_t one[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
            multiply(ones, one, b0, b1, T());
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
              const uint32_t exponent = plane ? 0x45004500u : 0x43004300u;
#pragma unroll
              for (int t = 0; t < TILES; ++t) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const int shifted = BITS * (pair + i / 2) + 4 * plane;
                  a[i] = and_or(words[t][i % 2][member][word] >> shifted, 0x000f000fu, exponent);
                }
                multiply(product[t], a, b0, b1, T());
              }
            }
          }
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float scale = shares[t][i / 2][0].number(member);
            const float shift = shares[t][i / 2][1].number(member) - RAISE * scale;
            total[t][i] += scale * product[t][i] + shift * ones[i % 2];
          }
        }
      }
    }
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

constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
constexpr int WORDS = QUARTER * BITS / 32;
constexpr int PLANES = BITS / 4;
constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
constexpr int GROUPS = K / GROUP;
constexpr int COLUMNS = (ROWS + 7) / 8;        // tiles of 8 rows of x
constexpr int OUTPUTS = 16 * TILES;            // of a block
constexpr int PAIRS = 32 / BITS / 2;           // in a word, of one plane
constexpr int HALF = 16 / BITS;                // from the first number of a pair to the second
constexpr int SOME = CHUNK * 8 / BITS / GROUP;
constexpr int MEMBERS = SOME ? SOME : 1;       // groups of a chunk
constexpr int CHUNKS = (GROUPS + MEMBERS - 1) / MEMBERS;
__shared__ float sums[WARPS][OUTPUTS][8 * COLUMNS];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int g = lane / 4;
const int c = lane % 4;
const int first = blockIdx.x * OUTPUTS;
const int64_t step = x_strides[2];

// Of this lane: rows of x, and outputs. What is beyond the last is read from it and not written.
const __nv_bfloat16* rows[COLUMNS];
bool x_wide = step == 1;
#pragma unroll
for (int t = 0; t < COLUMNS; ++t) {
  const int row = min(8 * t + g, ROWS - 1);
  rows[t] = x + row / LENGTH * x_strides[0] + row % LENGTH * x_strides[1] + c * QUARTER * step;
  x_wide = x_wide && reinterpret_cast<size_t>(rows[t]) % 16 == 0;
}
int64_t outputs[TILES][2];
#pragma unroll
for (int t = 0; t < TILES; ++t) {
  outputs[t][0] = min(first + 16 * t + g, N - 1);
  outputs[t][1] = min(first + 16 * t + 8 + g, N - 1);
}

const bool wide = reinterpret_cast<size_t>(weight) % 16 == 0;
constexpr int SHARE = MEMBERS * 2;             // bytes of an output's scales for a chunk
const bool aligned = GROUPS % MEMBERS == 0 && reinterpret_cast<size_t>(scales) % SHARE == 0 &&
                     reinterpret_cast<size_t>(biases) % SHARE == 0;
float total[TILES][COLUMNS][4] = {};
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
      float scale[TILES][2], shift[TILES][2];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          scale[t][i] = shares[t][i][0].number(member);
          shift[t][i] = shares[t][i][1].number(member) - RAISE * scale[t][i];
        }
      }
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
        uint32_t numbers[QUARTER / 2];
        read_numbers<QUARTER>(numbers, rows[column] + group * GROUP * step, step, x_wide);
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
            total[t][column][i] += scale[t][i / 2] * product[t][i] + shift[t][i / 2] * ones[i % 2];
          }
        }
      }
    }
  }
}
#pragma unroll
for (int t = 0; t < TILES; ++t) {
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[warp][16 * t + i / 2 * 8 + g][8 * column + 2 * c + i % 2] = total[t][column][i];
    }
  }
}
__syncthreads();
for (int at = threadIdx.x; at < ROWS * OUTPUTS; at += 32 * WARPS) {
  const int row = at / OUTPUTS;
  const int output = at % OUTPUTS;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) {
    sum += sums[i][output][row];
  }
  if (first + output < N) {
    out[int64_t(row) * N + first + output] = T(sum);
  }
}

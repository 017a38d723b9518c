constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
constexpr int WORDS = QUARTER * BITS / 32;
constexpr int PLANES = BITS / 4;
constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
constexpr int GROUPS = K / GROUP;
constexpr int COLUMNS = (ROWS + 7) / 8;        // tiles of 8 rows of x
constexpr int OUTPUTS = 16 * TILES;            // of a block
constexpr int PAIRS = 32 / BITS / 2;           // in a word, of one plane
constexpr int HALF = 16 / BITS;                // from the first number of a pair to the second
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
const bool wide = reinterpret_cast<size_t>(weight) % 16 == 0;
int64_t outputs[TILES][2];
#pragma unroll
for (int t = 0; t < TILES; ++t) {
  outputs[t][0] = min(first + 16 * t + g, N - 1);
  outputs[t][1] = min(first + 16 * t + 8 + g, N - 1);
}

float total[TILES][COLUMNS][4] = {};
#pragma unroll AHEAD
for (int group = warp; group < GROUPS; group += WARPS) {
  Words<WORDS> words[TILES][2];
  float scale[TILES][2], shift[TILES][2];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t at = outputs[t][i] * GROUPS + group;
      words[t][i].read(weight + at * (4 * WORDS) + c * WORDS, wide);
      scale[t][i] = float(__ldg(scales + at));
      shift[t][i] = float(__ldg(biases + at)) - RAISE * scale[t][i];
    }
  }
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    Words<QUARTER / 2> numbers;
    read_numbers<QUARTER>(numbers, rows[column] + group * GROUP * step, step, x_wide);
    if (8 * column + g >= ROWS) {
      numbers = {};
    }
    float ones[4] = {};
    float product[TILES][4] = {};
#pragma unroll
    for (int word = 0; word < WORDS; ++word) {
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair += 2) {
        // Two pairs of x, as far apart as those of a word.
        const uint32_t near = numbers.word[(word * 32 / BITS + pair) / 2];
        const uint32_t far = numbers.word[(word * 32 / BITS + pair + HALF) / 2];
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
              a[i] = and_or(words[t][i % 2].word[word] >> shifted, 0x000f000fu, exponent);
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

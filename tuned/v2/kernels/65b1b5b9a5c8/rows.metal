// A few rows times a packed matrix: every simdgroup makes OUTS outputs of all ROWS rows and reads
// their weights once. A lane takes every 32nd word of a weight row, unpacks it in registers, and
// multiplies it with the numbers of each row of x that belong there.

// Numbers with a scale and a bias for each GROUP of them.
template <typename T, int BITS, int GROUP, int K>
struct Affine {
  static constant constexpr int COUNT = 32 / BITS;  // numbers in a word
  const device T* scales;
  const device T* biases;

  // The weights in a word of an output's row.
  void unpack(uint packed, long output, int word, thread float (&weights)[COUNT]) const {
    const long group = output * (K / GROUP) + word * COUNT / GROUP;
    const float scale = float(scales[group]);
    const float bias = float(biases[group]);
    for (int i = 0; i < COUNT; ++i) {
      weights[i] = float(packed >> BITS * i & ((1u << BITS) - 1)) * scale + bias;
    }
  }
};

// Floats of 4 bits (sign, two of exponent, one of mantissa) with a power of two for each 32.
template <int K>
struct Mxfp4 {
  static constant constexpr int COUNT = 8;
  const device uint8_t* scales;

  void unpack(uint packed, long output, int word, thread float (&weights)[COUNT]) const {
    const uint power = scales[output * (K / 32) + word / 4];
    const float scale = as_type<float>(power == 0 ? 0x400000u : power << 23);
    for (int i = 0; i < COUNT; ++i) {
      const uint bits = packed >> 4 * i & 15;
      const uint magnitude = bits & 7;
      // Exponent and mantissa under float's bias; 1 is the one number without a leading bit.
      const float size =
          magnitude < 2 ? 0.5f * magnitude : as_type<float>((magnitude << 22) + 0x3f000000u);
      weights[i] = (bits < 8 ? size : -size) * scale;
    }
  }
};

template <typename T, int ROWS, int LENGTH, int N, int K, int OUTS, typename Packing>
inline void multiply_rows(
    Packing packing,
    const device T* x,
    long sequence_step,
    long token_step,
    long step,
    const device uint32_t* weight,
    device T* out,
    int first,
    int lane) {
  constexpr int COUNT = Packing::COUNT;
  constexpr int WORDS = K / COUNT;
  float sums[OUTS][ROWS];
  for (int o = 0; o < OUTS; ++o) {
    for (int row = 0; row < ROWS; ++row) {
      sums[o][row] = 0.0f;
    }
  }
  for (int word = lane; word < WORDS; word += 32) {
    float weights[OUTS][COUNT];
    for (int o = 0; o < OUTS; ++o) {
      const long output = min(first + o, N - 1);  // what is beyond the last is not written
      packing.unpack(weight[output * WORDS + word], output, word, weights[o]);
    }
    for (int row = 0; row < ROWS; ++row) {
      const device T* from = x + row / LENGTH * sequence_step + row % LENGTH * token_step;
      float numbers[COUNT];
      for (int i = 0; i < COUNT; ++i) {
        numbers[i] = float(from[(word * COUNT + i) * step]);
      }
      for (int o = 0; o < OUTS; ++o) {
        for (int i = 0; i < COUNT; ++i) {
          sums[o][row] += numbers[i] * weights[o][i];
        }
      }
    }
  }
  for (int o = 0; o < OUTS; ++o) {
    for (int row = 0; row < ROWS; ++row) {
      const float total = simd_sum(sums[o][row]);
      if (lane == 0 && first + o < N) {
        out[long(row) * N + first + o] = T(total);
      }
    }
  }
}

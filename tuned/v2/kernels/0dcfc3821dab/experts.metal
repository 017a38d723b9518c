// Rows times the packed matrices of the experts that they go to. Every simdgroup makes OUTS outputs
// of one expert's rows, up to SHARED of them at a time, and reads its weights once for these. A lane
// takes every 32nd word of a weight row, unpacks it in registers, and multiplies it with the numbers
// of each row of x that belong there.

// Numbers with a scale and a bias for each GROUP of them.
template <typename T, int BITS, int GROUP, int K>
struct Affine {
  static constant constexpr int COUNT = 32 / BITS;  // numbers in a word
  const device T* scales;
  const device T* biases;

  // The weights in a word of an output's row; outputs count through all experts.
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

// The first COUNT of the rows `members` of one expert, whose outputs begin at `base` of all experts'.
template <typename T, int COUNT, int LENGTH, int N, int K, int OUTS, int SHARED, typename Packing>
inline void multiply(
    Packing packing,
    const device T* x,
    const device uint32_t* weight,
    device T* out,
    const thread int (&members)[SHARED],
    int count,
    long base,
    int first,
    int lane) {
  constexpr int NUMBERS = Packing::COUNT;
  constexpr int WORDS = K / NUMBERS;
  float sums[OUTS][COUNT];
  for (int o = 0; o < OUTS; ++o) {
    for (int i = 0; i < COUNT; ++i) {
      sums[o][i] = 0.0f;
    }
  }
  for (int word = lane; word < WORDS; word += 32) {
    float weights[OUTS][NUMBERS];
    for (int o = 0; o < OUTS; ++o) {
      const long output = base + min(first + o, N - 1);  // what is beyond the last is not written
      packing.unpack(weight[output * WORDS + word], output, word, weights[o]);
    }
    for (int i = 0; i < COUNT; ++i) {
      // What is missing is read from the first, and not written.
      const int row = members[i < count ? i : 0];
      const device T* from = x + long(row / LENGTH) * K + word * NUMBERS;
      for (int j = 0; j < NUMBERS; ++j) {
        const float number = float(from[j]);
        for (int o = 0; o < OUTS; ++o) {
          sums[o][i] += number * weights[o][j];
        }
      }
    }
  }
  for (int o = 0; o < OUTS; ++o) {
    for (int i = 0; i < COUNT; ++i) {
      const float total = simd_sum(sums[o][i]);
      if (lane == 0 && i < count && first + o < N) {
        out[long(members[i]) * N + first + o] = T(total);
      }
    }
  }
}

template <typename T, int LENGTH, int N, int K, int OUTS, int SHARED, typename Packing>
inline void multiply_members(
    Packing packing,
    const device T* x,
    const device uint32_t* weight,
    device T* out,
    const thread int (&members)[SHARED],
    int count,
    long base,
    int first,
    int lane) {
  if (count == 1) {
    multiply<T, 1, LENGTH, N, K, OUTS, SHARED>(
        packing, x, weight, out, members, count, base, first, lane);
  } else if (count == 2) {
    multiply<T, 2, LENGTH, N, K, OUTS, SHARED>(
        packing, x, weight, out, members, count, base, first, lane);
  } else {
    multiply<T, SHARED, LENGTH, N, K, OUTS, SHARED>(
        packing, x, weight, out, members, count, base, first, lane);
  }
}

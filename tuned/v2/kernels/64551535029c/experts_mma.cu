// Rows times the packed matrices of the experts that they go to, on NVIDIA tensor cores (mma.sync
// m16n8k16, sm_80 and later).
//
// An expert's matrix is the left operand: 16 outputs; x is the right one: 8 rows of that expert,
// where the last one stands for those that are missing. So weights are read once for up to 8 rows,
// and one row costs what eight do. A warp makes TILES tiles of 16 outputs from some chunks of
// numbers; the warps of a block take these in turn and add up what they have.
//
// A number n is never converted: its four bits become the last of a bfloat16's mantissa, under the
// exponent of 128 the bits 0 to 3 (128 + n), under that of 2048 the bits 4 to 7 (2048 + 16 n).
// Scale s and bias b of a group stay out of the products:
//   sum x (s n + b) = s sum x (RAISE + n) + (b - RAISE s) sum x
// where RAISE is what was added, and the sum of x comes from the tensor cores as well: a product
// with ones.
//
// Which number a lane must hold depends on the order of the summed index, and that order is free.
// With g = lane / 4 and c = lane % 4 a lane holds a quarter of a group, in one piece: of outputs g
// and 8 + g, and of row g of x. A word's numbers lie in pairs apart, and so do x's:
//   4 bits: (0, 4) (1, 5) (2, 6) (3, 7)      8 bits: (0, 2) (1, 3)

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Both bits of a and b, or those of c, in one instruction (the compiler would take two).
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// A lane's words of a group, at once where they lie WIDE.
template <bool WIDE, int COUNT>
__device__ inline void read_words(uint32_t (&to)[COUNT], const uint32_t* from) {
  if (WIDE && COUNT % 4 == 0) {
#pragma unroll
    for (int i = 0; i + 3 < COUNT; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from + i));
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else if (WIDE && COUNT % 2 == 0) {
#pragma unroll
    for (int i = 0; i + 1 < COUNT; i += 2) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from + i));
      to[i] = two.x;
      to[i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      to[i] = __ldg(from + i);
    }
  }
}

// The scales or biases of one output for a chunk of groups, as they lie in memory.
template <int COUNT>
struct Shares {
  uint32_t word[(COUNT + 1) / 2];

  // `left`: how many there are before the output's end.
  template <bool ALIGNED>
  __device__ void read(const __nv_bfloat16* from, int left) {
    if (ALIGNED && COUNT == 8) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
      word[0] = four.x;
      word[COUNT / 8] = four.y;
      word[COUNT / 8 * 2] = four.z;
      word[COUNT / 8 * 3] = four.w;
    } else if (ALIGNED && COUNT == 4) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
      word[0] = two.x;
      word[COUNT / 4 % 2] = two.y;
    } else if (ALIGNED && COUNT == 2) {
      word[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    } else {
      const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
#pragma unroll
      for (int i = 0; i < COUNT; i += 2) {
        const uint32_t low = i < left ? __ldg(bits + i) : 0;
        const uint32_t high = i + 1 < COUNT && i + 1 < left ? __ldg(bits + i + 1) : 0;
        word[i / 2] = low | high << 16;
      }
    }
  }

  __device__ float number(int i) const {
    return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
  }
};

// What a lane needs of one row of x for a group, as pairs.
template <bool WIDE, int PAIRS>
__device__ inline void read_numbers(uint32_t (&to)[PAIRS], const __nv_bfloat16* from) {
  if (WIDE) {
#pragma unroll
    for (int i = 0; i < PAIRS; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + i / 4);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
    return;
  }
  const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    to[i] = bits[2 * i] | uint32_t(bits[2 * i + 1]) << 16;
  }
}

// Adds to `total` what a warp makes of its chunks: TILES tiles of 16 outputs times 8 rows.
template <bool WIDE, int GROUP, int BITS, int GROUPS, int MEMBERS, int WARPS, int AHEAD, int TILES>
__device__ void add_up(float (&total)[TILES][4], const __nv_bfloat16* row, const uint32_t* weight,
                       const __nv_bfloat16* scales, const __nv_bfloat16* biases,
                       const int64_t (&outputs)[TILES][2], int warp, int c) {
  using T = __nv_bfloat16;
  constexpr bool ALIGNED = WIDE && GROUPS % MEMBERS == 0;
  constexpr int QUARTER = GROUP / 4;  // numbers of a group that a lane holds
  constexpr int WORDS = QUARTER * BITS / 32;
  constexpr int PLANES = BITS / 4;
  constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
  constexpr int PAIRS = 32 / BITS / 2;  // in a word, of one plane
  constexpr int HALF = 16 / BITS;       // from the first number of a pair to the second
  constexpr int CHUNKS = (GROUPS + MEMBERS - 1) / MEMBERS;
#pragma unroll AHEAD
  for (int chunk = warp; chunk < CHUNKS; chunk += WARPS) {
    Shares<MEMBERS> shares[TILES][2][2];
    uint32_t words[TILES][2][MEMBERS][WORDS];
    uint32_t numbers[MEMBERS][QUARTER / 2];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t at = outputs[t][i] * GROUPS + chunk * MEMBERS;
        shares[t][i][0].template read<ALIGNED>(scales + at, GROUPS - chunk * MEMBERS);
        shares[t][i][1].template read<ALIGNED>(biases + at, GROUPS - chunk * MEMBERS);
#pragma unroll
        for (int member = 0; member < MEMBERS; ++member) {
          if (GROUPS % MEMBERS == 0 || chunk * MEMBERS + member < GROUPS) {
            read_words<WIDE>(words[t][i][member],
                             weight + (at + member) * (4 * WORDS) + c * WORDS);
          }
        }
      }
    }
#pragma unroll
    for (int member = 0; member < MEMBERS; ++member) {
      if (GROUPS % MEMBERS == 0 || chunk * MEMBERS + member < GROUPS) {
        read_numbers<WIDE>(numbers[member], row + (chunk * MEMBERS + member) * GROUP);
      }
    }
    __syncwarp();  // all loads are under way before any is waited for
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
        float ones[4] = {};
        float product[TILES][4] = {};
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
#pragma unroll
          for (int pair = 0; pair < PAIRS; pair += 2) {
            // Two pairs of x, as far apart as those of a word.
            const uint32_t near = numbers[member][(word * 32 / BITS + pair) / 2];
            const uint32_t far = numbers[member][(word * 32 / BITS + pair + HALF) / 2];
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
            total[t][i] += scale[t][i / 2] * product[t][i] + shift[t][i / 2] * ones[i % 2];
          }
        }
      }
    }
  }
}

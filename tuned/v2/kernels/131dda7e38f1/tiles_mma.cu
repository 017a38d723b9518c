// Up to 32 rows times a packed matrix on NVIDIA tensor cores (mma.sync m16n8k16, sm_80 and later).
//
// The matrix is the left operand: 16 outputs; x is the right one: 8 rows. The warps of a block make
// outputs of their own from the same x, which goes through shared memory a chunk at a time, while
// the next chunk of x and of weights is on its way. A block makes its outputs from a SPLITS-th of
// the summed index.
//
// A number n is never converted: its four bits become the last of a bfloat16's mantissa, under the
// exponent of 128 the bits 0 to 3 (128 + n), under that of 2048 the bits 4 to 7 (2048 + 16 n).
// Scale s and bias b of a group stay out of the products:
//   sum x (s n + b) = s sum x (RAISE + n) + (b - RAISE s) sum x
// where RAISE is what was added; the sums of x are made once for a block.
//
// Which number a lane must hold depends on the order of the summed index, and that order is free.
// With g = lane / 4 and c = lane % 4 a lane holds a quarter of a group, in one piece: of outputs g
// and 8 + g, and of row g of x. A word's numbers lie in pairs apart, and so do x's:
//   4 bits: (0, 4) (1, 5) (2, 6) (3, 7)      8 bits: (0, 2) (1, 3)

using bfloat = __nv_bfloat16;

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                bfloat) {
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

__device__ inline float low(uint32_t pair) {
  return __uint_as_float(pair << 16);
}

__device__ inline float high(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// What a lane holds of a chunk of one output: a quarter of each group, scales and biases.
template <int GROUPS, int MEMBERS, int WORDS>  // groups of an output, of a chunk; words of a lane
struct Piece {
  uint32_t words[MEMBERS][WORDS];
  uint32_t shares[2][(MEMBERS + 1) / 2];

  // Groups from `left` on are beyond the output's end.
  __device__ void read(const uint32_t* weight, const bfloat* scales, const bfloat* biases, int left,
                       bool wide) {
#pragma unroll
    for (int member = 0; member < MEMBERS; ++member) {
      if (member < left) {
        const uint32_t* const from = weight + member * 4 * WORDS;
        if (wide && WORDS % 4 == 0) {
#pragma unroll
          for (int i = 0; i + 3 < WORDS; i += 4) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(from + i));
            words[member][i] = four.x;
            words[member][i + 1] = four.y;
            words[member][i + 2] = four.z;
            words[member][i + 3] = four.w;
          }
        } else if (wide && WORDS == 2) {
          const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
          words[member][0] = two.x;
          words[member][WORDS - 1] = two.y;
        } else {
#pragma unroll
          for (int i = 0; i < WORDS; ++i) {
            words[member][i] = __ldg(from + i);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bfloat* const from = i ? biases : scales;
      if (wide && MEMBERS % 2 == 0 && GROUPS % MEMBERS == 0) {
#pragma unroll
        for (int at = 0; at < MEMBERS / 2; ++at) {
          shares[i][at] = __ldg(reinterpret_cast<const uint32_t*>(from) + at);
        }
      } else {
        const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
#pragma unroll
        for (int at = 0; at < MEMBERS; at += 2) {
          const uint32_t one = at < left ? __ldg(bits + at) : 0;
          const uint32_t other = at + 1 < MEMBERS && at + 1 < left ? __ldg(bits + at + 1) : 0;
          shares[i][at / 2] = one | other << 16;
        }
      }
    }
  }

  // The scale (which = 0) or the bias of a group.
  __device__ float share(int which, int member) const {
    return member % 2 ? high(shares[which][member / 2]) : low(shares[which][member / 2]);
  }
};

template <int ROWS, int N, int K, int BITS, int GROUP, int TILES, int WARPS, int CHUNK,
          int SPLITS, class To>
__device__ void product(To* to, const bfloat* x, const uint32_t* weight, const bfloat* scales,
                        const bfloat* biases) {
  constexpr int QUARTER = GROUP / 4;             // numbers of a group that a lane holds
  constexpr int WORDS = QUARTER * BITS / 32;
  constexpr int PLANES = BITS / 4;
  constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
  constexpr int GROUPS = K / GROUP;
  constexpr int COLUMNS = (ROWS + 7) / 8;        // tiles of 8 rows of x
  constexpr int PAIRS = 32 / BITS / 2;           // in a word, of one plane
  constexpr int SOME = CHUNK * 8 / BITS / GROUP;
  constexpr int MEMBERS = SOME ? SOME : 1;       // groups of a chunk
  constexpr int CHUNKS = (GROUPS + MEMBERS - 1) / MEMBERS;
  constexpr int EIGHTS = MEMBERS * GROUP / 8;    // of a row of x in a chunk: 8 numbers, 16 bytes
  constexpr int THREADS = 32 * WARPS;
  constexpr int SHARE = (8 * COLUMNS * EIGHTS + THREADS - 1) / THREADS;  // of them, of a thread
  __shared__ uint4 numbers[2][8 * COLUMNS][EIGHTS + 1];  // one more, for other banks
  __shared__ float sums[2][MEMBERS][8 * COLUMNS];
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const int first = (blockIdx.x * WARPS + threadIdx.x / 32) * 16 * TILES;
  constexpr int MOST = (CHUNKS + SPLITS - 1) / SPLITS;  // chunks of a block
  const int begin = SPLITS == 1 ? 0 : blockIdx.y * MOST;
  const int end = SPLITS == 1 ? CHUNKS : min(begin + MOST, CHUNKS);
  const bool wide = (reinterpret_cast<size_t>(x) | reinterpret_cast<size_t>(weight)) % 16 == 0 &&
                    (reinterpret_cast<size_t>(scales) | reinterpret_cast<size_t>(biases)) % 4 == 0;

  // Rows and outputs beyond the last are read from it, and not written.
  uint4 coming[SHARE];
  auto read_x = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int at = threadIdx.x + i * THREADS;
      const int row = min(at / EIGHTS, ROWS - 1);
      const int k = chunk * MEMBERS * GROUP + at % EIGHTS * 8;
      coming[i] = make_uint4(0, 0, 0, 0);
      if (at < 8 * COLUMNS * EIGHTS && k < K) {
        const bfloat* const from = x + row * K + k;
        if (wide) {
          coming[i] = __ldg(reinterpret_cast<const uint4*>(from));
        } else {
          const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
          coming[i].x = bits[0] | uint32_t(bits[1]) << 16;
          coming[i].y = bits[2] | uint32_t(bits[3]) << 16;
          coming[i].z = bits[4] | uint32_t(bits[5]) << 16;
          coming[i].w = bits[6] | uint32_t(bits[7]) << 16;
        }
      }
    }
  };
  auto put_x = [&](int stage) {
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int at = threadIdx.x + i * THREADS;
      if (at < 8 * COLUMNS * EIGHTS) {  // of a whole warp
        const uint4 x8 = coming[i];
        // Two pairs of x lie as far apart as those of a word: they become a lane's operands.
        const uint32_t far = BITS == 4 ? x8.z : x8.y;
        const uint32_t near = BITS == 4 ? x8.y : x8.z;
        numbers[stage][at / EIGHTS][at % EIGHTS] =
            make_uint4(__byte_perm(x8.x, far, 0x5410), __byte_perm(x8.x, far, 0x7632),
                       __byte_perm(near, x8.w, 0x5410), __byte_perm(near, x8.w, 0x7632));
        float sum = low(x8.x) + high(x8.x) + low(x8.y) + high(x8.y) + low(x8.z) + high(x8.z) +
                    low(x8.w) + high(x8.w);
#pragma unroll
        for (int apart = 1; apart < GROUP / 8; apart *= 2) {
          sum += __shfl_xor_sync(0xffffffffu, sum, apart);
        }
        if (at % (GROUP / 8) == 0) {
          sums[stage][at % EIGHTS / (GROUP / 8)][at / EIGHTS] = sum;
        }
      }
    }
  };
  Piece<GROUPS, MEMBERS, WORDS> next[TILES][2];
  auto read_weights = [&](int chunk) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = min(first + 16 * t + 8 * i + g, N - 1) * GROUPS + chunk * MEMBERS;
        const int left = GROUPS % MEMBERS ? GROUPS - chunk * MEMBERS : MEMBERS;
        next[t][i].read(weight + at * (4 * WORDS) + c * WORDS, scales + at, biases + at, left, wide);
      }
    }
  };

  float total[TILES][COLUMNS][4] = {};
  if (begin < end) {
    read_weights(begin);
    read_x(begin);
    put_x(begin % 2);
  }
  for (int chunk = begin; chunk < end; ++chunk) {
    Piece<GROUPS, MEMBERS, WORDS> now[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      now[t][0] = next[t][0];
      now[t][1] = next[t][1];
    }
    if (chunk + 1 < end) {
      read_weights(chunk + 1);
      read_x(chunk + 1);
    }
    __syncthreads();
    const int stage = chunk % 2;
#pragma unroll
    for (int member = 0; member < MEMBERS; ++member) {
      if (GROUPS % MEMBERS == 0 || chunk * MEMBERS + member < GROUPS) {
        float part[TILES][COLUMNS][4] = {};
#pragma unroll
        for (int eight = 0; eight < QUARTER / 8; ++eight) {
          uint32_t b[COLUMNS][4];
#pragma unroll
          for (int column = 0; column < COLUMNS; ++column) {
            const uint4 four =
                numbers[stage][8 * column + g][(member * GROUP + c * QUARTER) / 8 + eight];
            b[column][0] = four.x;
            b[column][1] = four.y;
            b[column][2] = four.z;
            b[column][3] = four.w;
          }
#pragma unroll
          for (int pairs = 0; pairs < 4; pairs += 2) {  // of a word, and of the words of this eight
            const int word = eight * PLANES + pairs / PAIRS;
            const int pair = pairs % PAIRS;
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
#pragma unroll
              for (int t = 0; t < TILES; ++t) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const uint32_t shifted =
                      now[t][i % 2].words[member][word] >> (BITS * (pair + i / 2) + 4 * plane);
                  a[i] = and_or(shifted, 0x000f000fu, plane ? 0x45004500u : 0x43004300u);
                }
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column) {
                  multiply(part[t][column], a, b[column][pairs], b[column][pairs + 1], bfloat());
                }
              }
            }
          }
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; ++column) {
          const float2 sum =
              *reinterpret_cast<const float2*>(&sums[stage][member][8 * column + 2 * c]);
#pragma unroll
          for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float scale = now[t][i / 2].share(0, member);
              const float shift = now[t][i / 2].share(1, member) - RAISE * scale;
              total[t][column][i] += scale * part[t][column][i] + shift * (i % 2 ? sum.y : sum.x);
            }
          }
        }
      }
    }
    if (chunk + 1 < end) {
      put_x((chunk + 1) % 2);  // nobody reads that stage: all are past this chunk's barrier
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * column + 2 * c + i % 2;
        const int output = first + 16 * t + 8 * (i / 2) + g;
        if (row < ROWS && output < N) {
          to[(int64_t(blockIdx.y) * ROWS + row) * N + output] = To(total[t][column][i]);
        }
      }
    }
  }
}

// Decode attention over a quantised KV cache on tensor cores (mma.sync, sm_80 and later): the shared
// part. bfloat16 activations, 4 or 8 bits, groups of 64 or 128.
//
// A warp takes 16 keys at a time, packed words straight from device memory into registers. A number
// is never converted: four bits under the exponent of 128 are the bfloat16 128 + n, two of them a
// register for one shift and one mask; a number of 8 bits is two planes of four, the upper one
// times 16. Scales and biases never touch a number either. With s and b of a key's group,
//   score = sum over groups of s sum q (128 + n) + (b - 128 s) sum q
//   output = sum over keys of w (128 + n) + w (b / s - 128), w = p s rounded to bfloat16,
// so that a weight's rounding scales the whole value and not its parts.
//
// Which element a lane must hold depends on the order of the summed index, and that order is free.
// With g = lane / 4, c = lane % 4, and GROUP_SIZE numbers in a group:
//   scores [row, key] = Q K^T: a lane holds numbers GROUP_SIZE h + GROUP_SIZE / 4 c and on
//   output [column, row] = V^T P^T: a lane holds columns 64 h + 8 g to + 7 of keys 2 c, 2 c + 1,
//   2 c + 8 and 2 c + 9, and of w what the scores left in its registers
// A warp has TILES tiles of 8 query rows.
//
// Scores are in base 2. A key that a row must not see scores HIDDEN; a running maximum starts at
// FLOOR, below any real score and far above HIDDEN: no infinity ever enters the arithmetic.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
constexpr float BASE2 = 1.44269504088896f;
constexpr float HIDDEN_SCORE = -3.4e38f;
constexpr float LOWEST_TOP = -1.7e38f;

// Kinds of mask: none, causal, bool, additive.
constexpr int CAUSAL_MASK = 1;
constexpr int ADDITIVE_MASK = 3;

__device__ inline float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pack(float a, float b, __nv_bfloat16) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Two bfloat16 times 16, exactly.
__device__ inline uint32_t times16(uint32_t pair) {
  return pack(16.0f * __uint_as_float(pair << 16), 16.0f * __uint_as_float(pair & 0xffff0000u),
              __nv_bfloat16());
}

// A quantised operand: its words and, for each group of a row, a scale and a bias.
template <typename T>
struct Operand {
  const uint32_t* words;
  const Strides& word_strides;
  const T* scales;
  const Strides& scale_strides;
  const T* biases;
  const Strides& bias_strides;
};

// COUNT words of a row whose words lie `step` apart: at once where it is dense and aligned.
template <int COUNT>
__device__ inline void read_words(uint32_t* to, const uint32_t* from, int64_t step, bool wide) {
  if (wide) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; i += 4) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(from + i));
        to[i] = w.x, to[i + 1] = w.y, to[i + 2] = w.z, to[i + 3] = w.w;
      }
    } else if constexpr (COUNT % 2 == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; i += 2) {
        const uint2 w = __ldg(reinterpret_cast<const uint2*>(from + i));
        to[i] = w.x, to[i + 1] = w.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        to[i] = __ldg(from + i);
      }
    }
  } else {
    // Rare, and volatile so that the compiler keeps few loads in flight: the registers belong to
    // the other branch.
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      to[i] = *reinterpret_cast<const volatile uint32_t*>(from + i * step);
    }
  }
}

// The scales (or biases) of a row's COUNT groups.
template <int COUNT, typename T>
__device__ inline void read_groups(float* to, const T* from, int64_t step, bool wide) {
  if constexpr (COUNT == 2) {
    if (wide) {
      const uint32_t both = __ldg(reinterpret_cast<const uint32_t*>(from));
      to[0] = __uint_as_float(both << 16), to[1] = __uint_as_float(both & 0xffff0000u);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    to[i] = float(from[i * step]);
  }
}

// Two numbers of four bits as bfloat16, each 128 more: bits 0 to 3 of both halves after a shift.
__device__ inline uint32_t raised(uint32_t word, int shift) {
  return (word >> shift & 0x000f000fu) | 0x43004300u;
}

// What a lane knows of its rows: row 8 t + g for top and sum, rows 8 t + 2 c and + 1 for out.
template <int DV, int TILES>
struct Accumulator {
  float top[TILES];
  float sum[TILES];
  float out[TILES][DV / 16][4];
};

// The first of the two columns that out[i] stands for.
template <int DV>
__device__ inline int column_of(int i, int g) {
  return i / 4 * 64 + 8 * g + i % 4 * 2;
}

// Attends to the 16-key tiles first, first + step, ... for the rows from row0 on of one KV head.
// Row i stands for query head i / QLEN of the group and query position i % QLEN.
template <int BITS, int GROUP_SIZE, int D, int DV, int GROUP, int QLEN, int MASK, int TILES,
          typename T, typename Mask>
__device__ inline void attend(Accumulator<DV, TILES>& state, const T* queries,
                              const Strides& q_strides, const Operand<T>& k, const Operand<T>& v,
                              const Mask* mask, const Strides& m_strides, float scale, int kv_len,
                              int batch, int kv_head, int row0, int first, int step, int lane) {
  constexpr int ROWS = GROUP * QLEN;
  constexpr int HELD = ROWS < 8 * TILES ? ROWS : 8 * TILES;  // rows that exist in this warp
  constexpr int PAIRS = (HELD + 1) / 2;
  constexpr unsigned ALL = 0xffffffffu;
  constexpr int PLANES = BITS / 4;
  constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 16.0f * 128.0f;
  constexpr int K_GROUPS = D / GROUP_SIZE;
  constexpr int V_GROUPS = DV / GROUP_SIZE;
  constexpr int OWN = GROUP_SIZE / 4;          // numbers of a key's group that a lane holds
  constexpr int WORDS = OWN * BITS / 32;       // in so many words
  constexpr int PER_WORD = 32 / BITS;
  constexpr int V_WORDS = 8 * BITS / 32;       // of 8 columns
  static_assert((BITS == 4 || BITS == 8) && GROUP_SIZE % 64 == 0, "quantisation not carried");
  static_assert(D % GROUP_SIZE == 0 && DV % GROUP_SIZE == 0 && TILES <= 2, "shape not carried");
  const int g = lane / 4;
  const int c = lane % 4;
  const float scale2 = scale * BASE2;
  queries += batch * q_strides[0];
  const uint32_t* const k_words =
      k.words + batch * k.word_strides[0] + kv_head * k.word_strides[1];
  const T* const k_scales = k.scales + batch * k.scale_strides[0] + kv_head * k.scale_strides[1];
  const T* const k_biases = k.biases + batch * k.bias_strides[0] + kv_head * k.bias_strides[1];
  const uint32_t* const v_words =
      v.words + batch * v.word_strides[0] + kv_head * v.word_strides[1];
  const T* const v_scales = v.scales + batch * v.scale_strides[0] + kv_head * v.scale_strides[1];
  const T* const v_biases = v.biases + batch * v.bias_strides[0] + kv_head * v.bias_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(k_words) | reinterpret_cast<size_t>(v_words)) % 16 == 0 &&
      (reinterpret_cast<size_t>(k_scales) | reinterpret_cast<size_t>(k_biases) |
       reinterpret_cast<size_t>(v_scales) | reinterpret_cast<size_t>(v_biases)) % 4 == 0 &&
      (k.word_strides[2] | v.word_strides[2]) % 4 == 0 && k.word_strides[3] == 1 &&
      v.word_strides[3] == 1 &&
      (k.scale_strides[2] | k.bias_strides[2]) % K_GROUPS == 0 &&
      (v.scale_strides[2] | v.bias_strides[2]) % V_GROUPS == 0 && k.scale_strides[3] == 1 &&
      k.bias_strides[3] == 1 && v.scale_strides[3] == 1 && v.bias_strides[3] == 1;

  // Rows beyond the last one repeat it, and are never written.
  uint32_t q[TILES][D / 8];
  float q_sum[TILES][K_GROUPS];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int row = min(row0 + 8 * t + g, ROWS - 1);
    const T* query =
        queries + (kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2];
#pragma unroll
    for (int h = 0; h < K_GROUPS; ++h) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < OWN / 2; ++i) {
        // Register i meets the numbers that one mask leaves of a word: PER_WORD / 2 apart.
        constexpr int APART = PER_WORD / 2;
        const int at = h * GROUP_SIZE + OWN * c + i / APART * PER_WORD + i % APART;
        const float low = float(query[at * q_strides[3]]);
        const float high = float(query[(at + APART) * q_strides[3]]);
        q[t][h * OWN / 2 + i] = pack(low, high, T());
        sum += low + high;
      }
      sum += __shfl_xor_sync(ALL, sum, 1);
      sum += __shfl_xor_sync(ALL, sum, 2);
      q_sum[t][h] = sum;
    }
    state.top[t] = LOWEST_TOP;
    state.sum[t] = 0.0f;
#pragma unroll
    for (int i = 0; i < DV / 16; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state.out[t][i][e] = 0.0f;
      }
    }
  }
  float shift[TILES][V_GROUPS] = {};  // of row 8 t + g, this lane's keys: sum of w (b / s - RAISE)

  // An array mask is read one tile ahead: lanes 0 to 15 hold the keys of an even row, 16 to 31 of
  // an odd one.
  float next[PAIRS];
  auto read_mask = [&](int tile) {
    if constexpr (MASK > CAUSAL_MASK) {
#pragma unroll
      for (int p = 0; p < PAIRS; ++p) {
        const int row = min(row0 + 2 * p + lane / 16, ROWS - 1);
        const int key = tile * 16 + lane % 16;
        next[p] = -INFINITY;
        if (key < kv_len) {
          next[p] = float(mask[batch * m_strides[0] +
                               (kv_head * GROUP + row / QLEN) * m_strides[1] +
                               row % QLEN * m_strides[2] + key * m_strides[3]]);
        }
      }
    }
  };
  // Moves to the next tile that any row sees; its 16 bits for row 8 t + g go to seen[t].
  uint32_t seen[TILES];
  auto find = [&](int tile) {
    for (; tile * 16 < kv_len; tile += step) {
      const int left = kv_len - tile * 16;
      if constexpr (MASK <= CAUSAL_MASK) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          const int position = min(row0 + 8 * t + g, ROWS - 1) % QLEN;
          const int count = MASK == CAUSAL_MASK ? left - QLEN + 1 + position : left;
          seen[t] = count >= 16 ? 0xffffu : count <= 0 ? 0u : (1u << count) - 1u;
        }
        if (MASK != CAUSAL_MASK || left >= QLEN || __any_sync(ALL, seen[0] | seen[TILES - 1])) {
          return tile;
        }
      } else {
        uint32_t any = 0;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          seen[t] = 0;
        }
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
          const bool visible = MASK == ADDITIVE_MASK ? next[p] != -INFINITY : next[p] > 0.0f;
          const uint32_t bits = __ballot_sync(ALL, visible);
          any |= bits;
          if (p % 4 == g / 2) {
            seen[p / 4] = g % 2 ? bits >> 16 : bits & 0xffffu;
          }
        }
        read_mask(tile + step);
        if (any) {
          return tile;
        }
      }
    }
    return tile;
  };
  uint32_t held[2][K_GROUPS][WORDS];  // words of keys g and 8 + g
  float s[4][K_GROUPS];               // of this lane's keys 2 c, 2 c + 1, 2 c + 8, 2 c + 9
  float b[4][K_GROUPS];
  float bias[TILES][4];
  const auto key_of = [&](int tile, int e) {
    return min(tile * 16 + e / 2 * 8 + 2 * c + e % 2, kv_len - 1);
  };
  auto read_keys = [&](int tile) {
    if (tile * 16 >= kv_len) {
      return;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int64_t key = min(tile * 16 + 8 * n + g, kv_len - 1);
#pragma unroll
      for (int h = 0; h < K_GROUPS; ++h) {
        const int at = (h * 4 + c) * WORDS;
        read_words<WORDS>(
            held[n][h], k_words + key * k.word_strides[2] + at * k.word_strides[3],
            k.word_strides[3], wide);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t key = key_of(tile, e);
      read_groups<K_GROUPS>(s[e], k_scales + key * k.scale_strides[2], k.scale_strides[3], wide);
      read_groups<K_GROUPS>(b[e], k_biases + key * k.bias_strides[2], k.bias_strides[3], wide);
    }
    if constexpr (MASK == ADDITIVE_MASK) {
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const int row = min(row0 + 8 * t + g, ROWS - 1);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          bias[t][e] = float(mask[batch * m_strides[0] +
                                  (kv_head * GROUP + row / QLEN) * m_strides[1] +
                                  row % QLEN * m_strides[2] + key_of(tile, e) * m_strides[3]]);
        }
      }
    }
  };

  read_mask(first);
  int tile = find(first);
  read_keys(tile);
  while (tile * 16 < kv_len) {
    uint32_t columns[4][DV / 64][V_WORDS];
    float v_s[4][V_GROUPS];
    float v_b[4][V_GROUPS];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t key = key_of(tile, e);
#pragma unroll
      for (int h = 0; h < DV / 64; ++h) {
        const int at = (h * 8 + g) * V_WORDS;
        read_words<V_WORDS>(
            columns[e][h], v_words + key * v.word_strides[2] + at * v.word_strides[3],
            v.word_strides[3], wide);
      }
      read_groups<V_GROUPS>(v_s[e], v_scales + key * v.scale_strides[2], v.scale_strides[3], wide);
      read_groups<V_GROUPS>(v_b[e], v_biases + key * v.bias_strides[2], v.bias_strides[3], wide);
    }

    float score[TILES][4] = {};  // of row 8 t + g: keys 2 c, 2 c + 1, 2 c + 8, 2 c + 9
#pragma unroll
    for (int h = 0; h < K_GROUPS; ++h) {
      float raw[2][PLANES][4] = {};
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
#pragma unroll
        for (int pair = 0; pair < PER_WORD / 4; ++pair) {
          const int i = h * OWN / 2 + w * PER_WORD / 2 + 2 * pair;
          const uint32_t a[4] = {
              q[0][i], TILES == 2 ? q[TILES - 1][i] : 0u, q[0][i + 1],
              TILES == 2 ? q[TILES - 1][i + 1] : 0u};
#pragma unroll
          for (int plane = 0; plane < PLANES; ++plane) {
            const int low = pair * 2 * BITS + 4 * plane;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              multiply(raw[n][plane], a, raised(held[n][h][w], low),
                       raised(held[n][h][w], low + BITS), T());
            }
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float rest = fmaf(-RAISE, s[e][h], b[e][h]);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          float dot = raw[e / 2][0][2 * t + e % 2];
          if (PLANES == 2) {
            dot = fmaf(16.0f, raw[e / 2][PLANES - 1][2 * t + e % 2], dot);
          }
          score[t][e] = fmaf(s[e][h], dot, fmaf(rest, q_sum[t][h], score[t][e]));
        }
      }
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[t][e] *= scale2;
        if constexpr (MASK == ADDITIVE_MASK) {
          score[t][e] = fmaxf(fmaf(bias[t][e], BASE2, score[t][e]), HIDDEN_SCORE);
        }
        const int at = e / 2 * 8 + 2 * c + e % 2;
        score[t][e] = seen[t] >> at & 1u ? score[t][e] : HIDDEN_SCORE;
      }
    }

    tile = find(tile + step);
    read_keys(tile);

    uint32_t weight[TILES][V_GROUPS][2];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      float top = fmaxf(fmaxf(score[t][0], score[t][1]), fmaxf(score[t][2], score[t][3]));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
      top = fmaxf(top, state.top[t]);
      const float fade = power2(state.top[t] - top);
      const bool moved = top != state.top[t];
      state.top[t] = top;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[t][e] = power2(score[t][e] - top);
      }
      state.sum[t] =
          state.sum[t] * fade + ((score[t][0] + score[t][1]) + (score[t][2] + score[t][3]));
      if (__any_sync(ALL, moved)) {
        const float fade0 = __shfl_sync(ALL, fade, 8 * c);
        const float fade1 = __shfl_sync(ALL, fade, 8 * c + 4);
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
          state.out[t][i][0] *= fade0;
          state.out[t][i][1] *= fade1;
          state.out[t][i][2] *= fade0;
          state.out[t][i][3] *= fade1;
        }
#pragma unroll
        for (int h = 0; h < V_GROUPS; ++h) {
          shift[t][h] *= fade;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < V_GROUPS; ++h) {
      float rest[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // A group of equal values may have no step at all: any will do, its numbers are zero.
        v_s[e][h] = v_s[e][h] == 0.0f ? 1e-30f : v_s[e][h];
        rest[e] = __fdividef(v_b[e][h], v_s[e][h]) - RAISE;
      }
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int e = 2 * half;
          const uint32_t w = pack(score[t][e] * v_s[e][h], score[t][e + 1] * v_s[e + 1][h], T());
          weight[t][h][half] = w;
          shift[t][h] = fmaf(__uint_as_float(w << 16), rest[e], shift[t][h]);
          shift[t][h] = fmaf(__uint_as_float(w & 0xffff0000u), rest[e + 1], shift[t][h]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < DV / 64; ++h) {
#pragma unroll
      for (int half = 0; half < 2 * V_WORDS; ++half) {
        // Columns 8 g + 4 half / V_WORDS and on of keys 2 c and 2 c + 1, and of the other two.
        const unsigned select = half % 2 ? 0x7632u : 0x5410u;
        const uint32_t near = __byte_perm(columns[0][h][half / 2], columns[1][h][half / 2], select);
        const uint32_t far = __byte_perm(columns[2][h][half / 2], columns[3][h][half / 2], select);
#pragma unroll
        for (int pair = 0; pair < 8 / BITS; ++pair) {
          const int i = h * 4 + half * (8 / BITS) + pair;
#pragma unroll
          for (int plane = 0; plane < PLANES; ++plane) {
            const int low = pair * 2 * BITS + 4 * plane;
            const uint32_t a[4] = {raised(near, low), raised(near, low + BITS), raised(far, low),
                                   raised(far, low + BITS)};
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
              uint32_t w[2];
#pragma unroll
              for (int part = 0; part < 2; ++part) {
                w[part] = weight[t][h * 64 / GROUP_SIZE][part];
                if (plane == 1) {
                  w[part] = times16(w[part]);
                }
              }
              multiply(state.out[t][i], a, w[0], w[1], T());
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    state.sum[t] += __shfl_xor_sync(ALL, state.sum[t], 1);
    state.sum[t] += __shfl_xor_sync(ALL, state.sum[t], 2);
#pragma unroll
    for (int h = 0; h < V_GROUPS; ++h) {
      shift[t][h] += __shfl_xor_sync(ALL, shift[t][h], 1);
      shift[t][h] += __shfl_xor_sync(ALL, shift[t][h], 2);
      const float even = __shfl_sync(ALL, shift[t][h], 8 * c);
      const float odd = __shfl_sync(ALL, shift[t][h], 8 * c + 4);
#pragma unroll
      for (int i = h * GROUP_SIZE / 16; i < (h + 1) * GROUP_SIZE / 16; ++i) {
        state.out[t][i][0] += even;
        state.out[t][i][1] += odd;
        state.out[t][i][2] += even;
        state.out[t][i][3] += odd;
      }
    }
  }
}

// The warps' results become one. For every row and column that this thread owns, `write` gets the
// row (from 0), the column, the weighted sum of values, the top and the sum of weights.
template <int DV, int HELD, int TILES, int WARPS, typename Write>
__device__ inline void merge(const Accumulator<DV, TILES>& state, float* tops, float* sums,
                             float* outs, int warp, int lane, Write write) {
  const int g = lane / 4;
  const int c = lane % 4;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    if (c == 0) {
      tops[warp * 8 * TILES + 8 * t + g] = state.top[t];
      sums[warp * 8 * TILES + 8 * t + g] = state.sum[t];
    }
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int row = 8 * t + 2 * c + odd;
      float top = LOWEST_TOP;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        top = fmaxf(top, tops[w * 8 * TILES + row]);
      }
      const float fade = power2(tops[warp * 8 * TILES + row] - top);
      if (row < HELD) {
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
          *reinterpret_cast<float2*>(outs + (warp * HELD + row) * DV + column_of<DV>(i, g)) =
              make_float2(state.out[t][i][odd] * fade, state.out[t][i][2 + odd] * fade);
        }
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int at = warp * 32 + lane; at < HELD * DV; at += WARPS * 32) {
    const int row = at / DV;
    float top = LOWEST_TOP;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      top = fmaxf(top, tops[w * 8 * TILES + row]);
    }
    float sum = 0.0f;
    float out = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      sum += sums[w * 8 * TILES + row] * power2(tops[w * 8 * TILES + row] - top);
      out += outs[w * HELD * DV + at];
    }
    write(row, at % DV, out, top, sum);
  }
}

// A row that sees no key at all has equal weights on the keys with the largest mask value (on all
// of them under a bool or causal mask); where every value is -infinity it is NaN. Rare.
template <int BITS, int GROUP_SIZE, int MASK, typename T, typename Mask>
__device__ inline float blind_row(const Operand<T>& v, int batch, int kv_head, int column,
                                  const Mask* mask, int64_t mask_stride, int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = fmaxf(top, MASK == ADDITIVE_MASK ? float(mask[key * mask_stride]) : 0.0f);
  }
  const uint32_t* const words =
      v.words + batch * v.word_strides[0] + kv_head * v.word_strides[1] +
      column * BITS / 32 * v.word_strides[3];
  const T* const scales = v.scales + batch * v.scale_strides[0] + kv_head * v.scale_strides[1] +
                          column / GROUP_SIZE * v.scale_strides[3];
  const T* const biases = v.biases + batch * v.bias_strides[0] + kv_head * v.bias_strides[1] +
                          column / GROUP_SIZE * v.bias_strides[3];
  float sum = 0.0f;
  float count = 0.0f;
  for (int64_t key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE_MASK || float(mask[key * mask_stride]) == top) {
      const uint32_t word = words[key * v.word_strides[2]] >> column * BITS % 32;
      sum += fmaf(float(word & ((1u << BITS) - 1u)), float(scales[key * v.scale_strides[2]]),
                  float(biases[key * v.bias_strides[2]]));
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

// Decode attention over a quantised KV cache on tensor cores (mma.sync, sm_80 and later): the shared
// part. bfloat16 activations, 4 or 8 bits, groups of 64 or 128.
//
// Every warp has a ring of STAGES tiles of 16 keys in shared memory, which it alone fills (cp.async)
// and reads: no barrier of the block, and device memory is always busy with the tiles ahead.
//
// A number is never converted: four bits under the exponent of 128 are the bfloat16 128 + n, two of
// them a register for one shift and one mask; the upper four of 8 bits are 2048 + 16 n under the
// exponent of 2048. Scales and biases never touch a number either. With s and b of a key's group and
// RAISE what was added,
//   score = sum over groups of s sum q (RAISE + n) + (b - RAISE s) sum q
//   output = sum over keys of w (RAISE + n) + w (b / s - RAISE), w = p s rounded to bfloat16,
// so that a weight's rounding scales the whole value and not its parts. What stands in brackets is
// worked out once a tile, by one lane for each key and group.
//
// Which element a lane must hold depends on the order of the summed index, and that order is free.
// With g = lane / 4, c = lane % 4, and GROUP_SIZE numbers in a group:
//   scores [key, row] = K Q^T: a lane holds numbers GROUP_SIZE h + GROUP_SIZE / 4 c and on of keys g
//   and 8 + g, and gets these keys' scores of rows 2 c and 2 c + 1
//   output [column, row] = V^T P^T: a lane holds columns 64 h + 8 g to + 7 of keys 2 c, 2 c + 1,
//   2 c + 8 and 2 c + 9, and weights that are the scores' tiles of 8 by 8, turned
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
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows of an 8 x 8 tile become columns.
__device__ inline uint32_t turn(uint32_t tile) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(tile));
  return turned;
}

// 16 bytes from device memory to shared memory, behind the thread's back.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :: "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of the groups committed last are under way.
template <int N>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

__device__ inline uint32_t pack(float a, float b, __nv_bfloat16) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Both bits of a and b, or those of c, in one instruction (the compiler would take two).
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// Two numbers of four bits as bfloat16, bits 0 to 3 of both halves after a shift: 128 + n each, of
// the upper plane 2048 + 16 n.
__device__ inline uint32_t raised(uint32_t word, int shift, int plane) {
  return and_or(word >> shift, 0x000f000fu, plane ? 0x45004500u : 0x43004300u);
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

// The same, of one KV head.
template <typename T>
struct Head {
  const uint32_t* words;
  const T* scales;
  const T* biases;
  int64_t word_steps[2];  // to the next key and to the next word
  int64_t scale_steps[2];
  int64_t bias_steps[2];

  __device__ Head(const Operand<T>& all, int batch, int head)
      : words(all.words + batch * all.word_strides[0] + head * all.word_strides[1]),
        scales(all.scales + batch * all.scale_strides[0] + head * all.scale_strides[1]),
        biases(all.biases + batch * all.bias_strides[0] + head * all.bias_strides[1]),
        word_steps{all.word_strides[2], all.word_strides[3]},
        scale_steps{all.scale_strides[2], all.scale_strides[3]},
        bias_steps{all.bias_strides[2], all.bias_strides[3]} {}

  // Keys without gaps between them, at addresses that 16 bytes can be copied from.
  __device__ bool dense(int row_words, int groups) const {
    return (reinterpret_cast<size_t>(words) | reinterpret_cast<size_t>(scales) |
            reinterpret_cast<size_t>(biases)) % 16 == 0 &&
           word_steps[0] == row_words && word_steps[1] == 1 && scale_steps[0] == groups &&
           bias_steps[0] == groups && (groups == 1 || (scale_steps[1] == 1 && bias_steps[1] == 1));
  }
};

// A stage of a ring, in bytes: words of keys, words of values, scales and biases of keys and of
// values as they are in device memory, and MASK_ROWS rows of the mask. Before the stages a ring has
// room for the scales and biases of one tile as they are used.
template <int BITS, int GROUP_SIZE, int D, int DV, int MASK_ROWS>
struct Layout {
  static constexpr int K_ROW = D * BITS / 8;
  static constexpr int V_ROW = DV * BITS / 8;
  static constexpr int K_GROUPS = D / GROUP_SIZE;
  static constexpr int V_GROUPS = DV / GROUP_SIZE;
  static constexpr int VALUES = 16 * K_ROW;
  static constexpr int FITS = VALUES + 16 * V_ROW;
  static constexpr int SEEN = FITS + 64 * (K_GROUPS + V_GROUPS);
  static constexpr int STAGE = (SEEN + 32 * MASK_ROWS + 127) / 128 * 128;
  static constexpr int FITTED = 128 * (K_GROUPS + V_GROUPS);
  static constexpr int ring(int stages) { return FITTED + stages * STAGE; }
};

// Where 16 bytes of a tile whose rows have ROW bytes lie, so that no access of a warp meets a bank
// twice. Keys 8 apart lie 8 rows apart.
template <int ROW>
__device__ inline int place(int key, int chunk) {
  constexpr int CHUNKS = ROW / 16;
  static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS == 8, "row not carried");
  const int twist = CHUNKS == 8 ? (key & 6) ^ (key & 1) * 5 : CHUNKS == 4 ? key & 6 : (key & 4) / 2;
  return ((key * CHUNKS + chunk) ^ twist) * 16;
}

// The words of 16 dense rows, of which `rows` exist.
template <int ROW>
__device__ inline void copy_dense(unsigned char* to, const uint32_t* from, int rows, int lane) {
#pragma unroll
  for (int at = lane; at < ROW; at += 32) {
    copy_async(to + place<ROW>(at / (ROW / 16), at % (ROW / 16)),
               from + min(at, rows * (ROW / 16) - 1) * 4);
  }
}

// The words of any 16 rows from `first` on; rows from `end` on repeat the last one. Rare, and one
// load at a time: the registers belong to the others.
template <int ROW>
__device__ inline void copy_words(unsigned char* to, const uint32_t* from, const int64_t (&steps)[2],
                                  int first, int end, int lane) {
#pragma unroll 1
  for (int at = lane; at < ROW * 4; at += 32) {
    const int key = at / (ROW / 4);
    const int word = at % (ROW / 4);
    *reinterpret_cast<uint32_t*>(to + place<ROW>(key, word / 4) + word % 4 * 4) =
        from[min(first + key, end - 1) * steps[0] + word * steps[1]];
  }
}

template <int GROUPS, typename T>
__device__ inline void copy_groups(T* to, const T* from, const int64_t (&steps)[2], int first,
                                   int end, int lane) {
  if (lane < 16 * GROUPS) {
    to[lane] = from[min(first + lane / GROUPS, end - 1) * steps[0] + lane % GROUPS * steps[1]];
  }
}

// COUNT words, at most four, in one access.
template <int COUNT>
__device__ inline void read_words(uint32_t* to, const unsigned char* from) {
  if constexpr (COUNT == 4) {
    const uint4 w = *reinterpret_cast<const uint4*>(from);
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
  } else if constexpr (COUNT == 2) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    to[0] = w.x, to[1] = w.y;
  } else {
    static_assert(COUNT == 1, "not a size of an access");
    to[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// Scales and what goes with them of a key's COUNT groups.
template <int COUNT>
__device__ inline void read_fits(float (&scale)[COUNT], float (&rest)[COUNT], const float2* from) {
  if constexpr (COUNT == 2) {
    const float4 both = *reinterpret_cast<const float4*>(from);
    scale[0] = both.x, rest[0] = both.y, scale[1] = both.z, rest[1] = both.w;
  } else {
    static_assert(COUNT == 1, "groups not carried");
    const float2 one = *from;
    scale[0] = one.x, rest[0] = one.y;
  }
}

// What a lane knows of its rows 8 t + 2 c and + 1.
template <int DV, int TILES>
struct Accumulator {
  float top[TILES][2];
  float sum[TILES][2];
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
          int STAGES, int MASK_ROWS, typename T, typename Mask>
__device__ inline void attend(Accumulator<DV, TILES>& state, unsigned char* ring, const T* queries,
                              const Strides& q_strides, const Operand<T>& keys,
                              const Operand<T>& values, const Mask* mask, const Strides& m_strides,
                              float scale, int kv_len, int batch, int kv_head, int row0, int first,
                              int step, int lane) {
  using In = Layout<BITS, GROUP_SIZE, D, DV, MASK_ROWS>;
  constexpr int ROWS = GROUP * QLEN;
  constexpr unsigned ALL = 0xffffffffu;
  constexpr int PLANES = BITS / 4;
  constexpr float RAISE = PLANES == 1 ? 128.0f : 128.0f + 2048.0f;
  constexpr int K_GROUPS = In::K_GROUPS;
  constexpr int V_GROUPS = In::V_GROUPS;
  constexpr int OWN = GROUP_SIZE / 4;          // numbers of a key's group that a lane holds
  constexpr int WORDS = OWN * BITS / 32;       // in so many words
  constexpr int AT_ONCE = WORDS < 4 ? WORDS : 4;
  constexpr int PER_WORD = 32 / BITS;
  constexpr int V_WORDS = 8 * BITS / 32;       // of 8 columns
  static_assert((BITS == 4 || BITS == 8) && GROUP_SIZE % 64 == 0, "quantisation not carried");
  static_assert(D % GROUP_SIZE == 0 && DV % GROUP_SIZE == 0 && TILES <= 2, "shape not carried");
  const int g = lane / 4;
  const int c = lane % 4;
  const Head<T> k(keys, batch, kv_head);
  const Head<T> v(values, batch, kv_head);
  const bool dense = k.dense(In::K_ROW / 4, K_GROUPS) && v.dense(In::V_ROW / 4, V_GROUPS);

  // Which 16 bytes of a tile's scales and biases this lane copies.
  const T* fits;
  int fit_step;
  {
    const bool of_keys = lane < 4 * K_GROUPS;
    const int groups = of_keys ? K_GROUPS : V_GROUPS;
    const int at = of_keys ? lane : lane - 4 * K_GROUPS;
    fits = at < 2 * groups ? (of_keys ? k.scales : v.scales) + at * 8
                           : (of_keys ? k.biases : v.biases) + (at - 2 * groups) * 8;
    fit_step = 16 * groups;
  }

  // An array mask is read one tile ahead of the tile that is asked for: lanes 0 to 15 hold the keys
  // of an even row, 16 to 31 of an odd one.
  float next[MASK_ROWS / 2 + 1];
  auto read_mask = [&](int tile) {
#pragma unroll
    for (int p = 0; p < MASK_ROWS / 2; ++p) {
      const int row = min(row0 + 2 * p + lane / 16, ROWS - 1);
      const int key = tile * 16 + lane % 16;
      next[p] = -INFINITY;
      if (key < kv_len) {
        const float value = float(mask[batch * m_strides[0] +
                                       (kv_head * GROUP + row / QLEN) * m_strides[1] +
                                       row % QLEN * m_strides[2] + key * m_strides[3]]);
        next[p] = MASK == ADDITIVE_MASK ? value : value > 0.0f ? 0.0f : -INFINITY;
      }
    }
  };
  // Asks for the next tile that any row sees.
  int tile = first;
  int asked = 0;
  auto ask = [&](unsigned char* to) {
    if constexpr (MASK > CAUSAL_MASK) {
      for (bool seen = false; tile * 16 < kv_len;) {
        T* const rows = reinterpret_cast<T*>(to + In::SEEN);
#pragma unroll
        for (int p = 0; p < MASK_ROWS / 2; ++p) {
          seen = seen || next[p] != -INFINITY;
          rows[p * 32 + lane] = T(next[p]);
        }
        seen = __any_sync(ALL, seen);
        read_mask(tile + step);
        if (seen) {
          break;
        }
        tile += step;
      }
    }
    const int left = kv_len - tile * 16;
    if (left > 0) {
      const uint32_t* const from = k.words + int64_t(tile) * (In::K_ROW * 4);
      const uint32_t* const v_from = v.words + int64_t(tile) * (In::V_ROW * 4);
      if (dense && left >= 16) {
        copy_dense<In::K_ROW>(to, from, 16, lane);
        copy_dense<In::V_ROW>(to + In::VALUES, v_from, 16, lane);
        if (lane < 4 * (K_GROUPS + V_GROUPS)) {
          copy_async(to + In::FITS + 16 * lane, fits + int64_t(tile) * fit_step);
        }
      } else {
        T* const to_k = reinterpret_cast<T*>(to + In::FITS);
        T* const to_v = to_k + 32 * K_GROUPS;
        const int key = tile * 16;
        copy_groups<K_GROUPS>(to_k, k.scales, k.scale_steps, key, kv_len, lane);
        copy_groups<K_GROUPS>(to_k + 16 * K_GROUPS, k.biases, k.bias_steps, key, kv_len, lane);
        copy_groups<V_GROUPS>(to_v, v.scales, v.scale_steps, key, kv_len, lane);
        copy_groups<V_GROUPS>(to_v + 16 * V_GROUPS, v.biases, v.bias_steps, key, kv_len, lane);
        if (dense) {
          copy_dense<In::K_ROW>(to, from, left, lane);
          copy_dense<In::V_ROW>(to + In::VALUES, v_from, left, lane);
        } else {
          copy_words<In::K_ROW>(to, k.words, k.word_steps, key, kv_len, lane);
          copy_words<In::V_ROW>(to + In::VALUES, v.words, v.word_steps, key, kv_len, lane);
        }
      }
      tile += step;
      ++asked;
    }
    commit_copies();
  };
  float2* const k_fitted = reinterpret_cast<float2*>(ring);
  float2* const v_fitted = k_fitted + 16 * K_GROUPS;
  ring += In::FITTED;
  read_mask(first);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    ask(ring + i * In::STAGE);
  }

  // Rows beyond the last one repeat it, and are never written. A lane holds numbers of row 8 t + g,
  // and the sums of rows 8 t + 2 c and + 1.
  queries += batch * q_strides[0];
  uint32_t q[TILES][D / 8];
  float q_sum[TILES][K_GROUPS][2];
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
      q_sum[t][h][0] = __shfl_sync(ALL, sum, 8 * c);
      q_sum[t][h][1] = __shfl_sync(ALL, sum, 8 * c + 4);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.top[t][r] = LOWEST_TOP;
      state.sum[t][r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < DV / 16; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state.out[t][i][e] = 0.0f;
      }
    }
  }
  const float scale2 = scale * BASE2;
  float shift[TILES][V_GROUPS][2] = {};  // this lane's keys' sum of w (b / s - RAISE)

  int at_stage = 0;  // where the stage to use next begins; the stage before it is the next to fill
#pragma unroll 1
  for (int used = 0; used < asked; ++used) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // all lanes' copies are here, and no lane reads the last tile any more
    ask(ring + (at_stage ? at_stage : STAGES * In::STAGE) - In::STAGE);
    const unsigned char* const here = ring + at_stage;

    // A lane works out one key's and group's scales and biases.
    const T* const raw_fits = reinterpret_cast<const T*>(here + In::FITS);
    if (lane < 16 * K_GROUPS) {
      const float s = float(raw_fits[lane]);
      const float b = float(raw_fits[16 * K_GROUPS + lane]);
      k_fitted[lane] = make_float2(s * scale2, fmaf(-RAISE, s, b) * scale2);
    }
    if (lane < 16 * V_GROUPS) {
      // A group of equal values may have no step at all: any will do, its numbers are zero.
      const float step_or_0 = float(raw_fits[32 * K_GROUPS + lane]);
      const float s = step_or_0 == 0.0f ? 1e-30f : step_or_0;
      const float b = float(raw_fits[32 * K_GROUPS + 16 * V_GROUPS + lane]);
      v_fitted[lane] = make_float2(s, __fdividef(b, s) - RAISE);
    }

    float raw[TILES][K_GROUPS][4] = {};  // keys g, g, 8 + g, 8 + g of rows 2 c, 2 c + 1, ...
#pragma unroll
    for (int h = 0; h < K_GROUPS; ++h) {
#pragma unroll
      for (int w0 = 0; w0 < WORDS; w0 += AT_ONCE) {
        const int at = (h * 4 + c) * WORDS + w0;
        const unsigned char* const from = here + place<In::K_ROW>(g, at / 4) + at % 4 * 4;
        uint32_t held[2][AT_ONCE];
        read_words<AT_ONCE>(held[0], from);
        read_words<AT_ONCE>(held[1], from + 8 * In::K_ROW);
#pragma unroll
        for (int w = 0; w < AT_ONCE; ++w) {
#pragma unroll
          for (int pair = 0; pair < PER_WORD / 4; ++pair) {
            const int i = h * OWN / 2 + (w0 + w) * PER_WORD / 2 + 2 * pair;
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
              const int low = pair * 2 * BITS + 4 * plane;
              const uint32_t a[4] = {
                  raised(held[0][w], low, plane), raised(held[1][w], low, plane),
                  raised(held[0][w], low + BITS, plane), raised(held[1][w], low + BITS, plane)};
#pragma unroll
              for (int t = 0; t < TILES; ++t) {
                multiply(raw[t][h], a, q[t][i], q[t][i + 1], T());
              }
            }
          }
        }
      }
    }

    __syncwarp();  // all lanes' scales and biases are there
    float score[TILES][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float s[K_GROUPS];
      float rest[K_GROUPS];
      read_fits(s, rest, k_fitted + (8 * n + g) * K_GROUPS);
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int h = 0; h < K_GROUPS; ++h) {
            score[t][2 * n + r] = fmaf(s[h], raw[t][h][2 * n + r],
                                       fmaf(rest[h], q_sum[t][h][r], score[t][2 * n + r]));
          }
        }
      }
    }
    if constexpr (MASK > CAUSAL_MASK) {
      const T* const rows = reinterpret_cast<const T*>(here + In::SEEN);
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = min(8 * t + 2 * c + e % 2, MASK_ROWS - 1);
          const float bias = float(rows[row * 16 + 8 * (e / 2) + g]);
          score[t][e] = fmaxf(fmaf(bias, BASE2, score[t][e]), HIDDEN_SCORE);
        }
      }
    } else {
      const int key = (first + used * step) * 16;
      const int open = kv_len - key - (MASK == CAUSAL_MASK ? QLEN - 1 : 0);  // to every row
      if (open < 16) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = min(row0 + 8 * t + 2 * c + e % 2, ROWS - 1);
            const int count = open + (MASK == CAUSAL_MASK ? row % QLEN : 0);
            score[t][e] = 8 * (e / 2) + g < count ? score[t][e] : HIDDEN_SCORE;
          }
        }
      }
    }

    // A new maximum is rare, and only then does anything cross lanes or fade.
    bool above = false;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        above = above || score[t][e] > state.top[t][e % 2];
      }
    }
    if (__any_sync(ALL, above)) {
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float top = fmaxf(fmaxf(score[t][r], score[t][2 + r]), state.top[t][r]);
          top = fmaxf(top, __shfl_xor_sync(ALL, top, 4));
          top = fmaxf(top, __shfl_xor_sync(ALL, top, 8));
          top = fmaxf(top, __shfl_xor_sync(ALL, top, 16));
          const float fade = power2(state.top[t][r] - top);
          state.top[t][r] = top;
          state.sum[t][r] *= fade;
#pragma unroll
          for (int i = 0; i < DV / 16; ++i) {
            state.out[t][i][r] *= fade;
            state.out[t][i][2 + r] *= fade;
          }
#pragma unroll
          for (int h = 0; h < V_GROUPS; ++h) {
            shift[t][h][r] *= fade;
          }
        }
      }
    }

    uint32_t weight[TILES][V_GROUPS][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float s[V_GROUPS];
      float rest[V_GROUPS];
      read_fits(s, rest, v_fitted + (8 * n + g) * V_GROUPS);
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const float p0 = power2(score[t][2 * n] - state.top[t][0]);
        const float p1 = power2(score[t][2 * n + 1] - state.top[t][1]);
        state.sum[t][0] += p0;
        state.sum[t][1] += p1;
#pragma unroll
        for (int h = 0; h < V_GROUPS; ++h) {
          const uint32_t w = pack(p0 * s[h], p1 * s[h], T());
          shift[t][h][0] = fmaf(__uint_as_float(w << 16), rest[h], shift[t][h][0]);
          shift[t][h][1] = fmaf(__uint_as_float(w & 0xffff0000u), rest[h], shift[t][h][1]);
          weight[t][h][n] = turn(w);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < DV / 64; ++h) {
      uint32_t columns[4][V_WORDS];  // of keys 2 c, 2 c + 1, 2 c + 8 and 2 c + 9
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = (h * 8 + g) * V_WORDS;
        read_words<V_WORDS>(columns[e], here + In::VALUES + e / 2 * 8 * In::V_ROW +
                                            place<In::V_ROW>(2 * c + e % 2, at / 4) + at % 4 * 4);
      }
#pragma unroll
      for (int half = 0; half < 2 * V_WORDS; ++half) {
        // Columns 8 g + 4 half / V_WORDS and on of keys 2 c and 2 c + 1, and of the other two.
        const unsigned select = half % 2 ? 0x7632u : 0x5410u;
        const uint32_t near = __byte_perm(columns[0][half / 2], columns[1][half / 2], select);
        const uint32_t far = __byte_perm(columns[2][half / 2], columns[3][half / 2], select);
#pragma unroll
        for (int pair = 0; pair < 8 / BITS; ++pair) {
          const int i = h * 4 + half * (8 / BITS) + pair;
#pragma unroll
          for (int plane = 0; plane < PLANES; ++plane) {
            const int low = pair * 2 * BITS + 4 * plane;
            const uint32_t a[4] = {raised(near, low, plane), raised(near, low + BITS, plane),
                                   raised(far, low, plane), raised(far, low + BITS, plane)};
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
              const uint32_t(&w)[2] = weight[t][h * 64 / GROUP_SIZE];
              multiply(state.out[t][i], a, w[0], w[1], T());
            }
          }
        }
      }
    }
    at_stage = at_stage == (STAGES - 1) * In::STAGE ? 0 : at_stage + In::STAGE;
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        state.sum[t][r] += __shfl_xor_sync(ALL, state.sum[t][r], lanes);
#pragma unroll
        for (int h = 0; h < V_GROUPS; ++h) {
          shift[t][h][r] += __shfl_xor_sync(ALL, shift[t][h][r], lanes);
        }
      }
#pragma unroll
      for (int i = 0; i < DV / 16; ++i) {
        state.out[t][i][r] += shift[t][i * 16 / GROUP_SIZE][r];
        state.out[t][i][2 + r] += shift[t][i * 16 / GROUP_SIZE][r];
      }
    }
  }
}

// The warps' results become one. For every row and column that this thread owns, `write` gets the
// row (from 0), the column, the weighted sum of values, the top and the sum of weights. `outs` may
// be the rings' memory: it is written when every warp has come here.
template <int DV, int HELD, int TILES, int WARPS, typename Write>
__device__ inline void merge(const Accumulator<DV, TILES>& state, float* tops, float* sums,
                             float* outs, int warp, int lane, Write write) {
  const int g = lane / 4;
  const int c = lane % 4;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (g == r) {
        tops[warp * 8 * TILES + 8 * t + 2 * c + r] = state.top[t][r];
        sums[warp * 8 * TILES + 8 * t + 2 * c + r] = state.sum[t][r];
      }
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

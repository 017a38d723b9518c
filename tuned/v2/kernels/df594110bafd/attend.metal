// Decode attention over a quantised KV cache, the part that every launch shares.
//
// A simdgroup takes KEYS keys at a time. Its 32 lanes form TEAMS teams of LANES lanes; a team
// takes one key, a lane of it chunks of CHUNK numbers of that key's row, and every chunk loaded
// serves all ROWS query rows of the KV head. Each team runs its own online softmax in float32.
//
// A number n of BITS bits is never converted: its bits become the top of the mantissa of a float
// with exponent BITS, which is 2^BITS + n. With scale s and bias b of its group,
//   sum q (n s + b) = s sum q (2^BITS + n) + (b - 2^BITS s) sum q,
// so that a number costs a shift, a mask and one multiply-add for every row. Beyond 4 bits the sum
// would lose too much of float32's precision to 2^BITS: it is subtracted, exactly, at once.
//
// Scores are in base 2. A key that a row must not see scores HIDDEN. A running maximum starts at
// FLOOR, below any real score and yet far above HIDDEN: no infinity ever enters the arithmetic.
constant constexpr float LOG2E = 1.44269504088896f;
constant constexpr float HIDDEN = -3.4e38f;
constant constexpr float FLOOR = -1.7e38f;

// Kinds of mask, the values of the template argument MASK.
constant constexpr int NONE = 0;
constant constexpr int CAUSAL = 1;
constant constexpr int ADDITIVE = 3;  // 2: bool

struct alignas(8) Two {
  uint word[2];
};

struct alignas(16) Four {
  uint word[4];
};

template <int COUNT>
struct Words {
  uint word[COUNT];
};

// Reads COUNT words of a row whose words lie `step` apart: at once where it is dense and aligned.
template <int COUNT>
inline Words<COUNT> read_words(const device uint32_t* row, long step, bool wide) {
  Words<COUNT> words;
  if (wide && COUNT % 4 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const uint4 four = *(const device uint4*)(row + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words.word[(i + j) % COUNT] = four[j];
      }
    }
  } else if (wide && COUNT % 2 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      const uint2 two = *(const device uint2*)(row + i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        words.word[(i + j) % COUNT] = two[j];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      words.word[i] = row[i * step];
    }
  }
  return words;
}

template <int BITS>
constexpr float raise() {
  return BITS > 4 ? 0.0f : float(1 << BITS);
}

// raise() + the number at place e of a chunk.
template <int BITS, int COUNT>
inline float raised(const thread Words<COUNT>& words, int e) {
  constexpr int TOP = 23 - BITS;  // of a mantissa: where a number's lowest bit goes
  constexpr uint FIELD = ((1u << BITS) - 1u) << TOP;
  constexpr uint EXPONENT = uint(127 + BITS) << 23;
  const int from = e * BITS % 32;
  uint bits = words.word[e * BITS / 32];
  if (from + BITS > 32) {
    bits = (bits >> from) | (words.word[(e * BITS / 32 + 1) % COUNT] << ((32 - from) % 32));
    bits <<= TOP;
  } else {
    bits = from <= TOP ? bits << ((TOP - from) & 31) : bits >> ((from - TOP) & 31);
  }
  const float x = as_type<float>((bits & FIELD) | EXPONENT);
  return BITS > 4 ? x - float(1 << BITS) : x;
}

inline uint first_bits(int n) {
  return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u;
}

// Numbers of a row that one of LANES lanes holds, in whole chunks.
template <int WIDTH, int LANES, int CHUNK>
constexpr int own_numbers() {
  return (WIDTH / CHUNK + LANES - 1) / LANES * CHUNK;
}

// A quantised operand: its words and, for each group of a row, a scale and a bias.
template <typename T, typename Strides>
struct Operand {
  const device uint32_t* words;
  Strides word_strides;
  const device T* scales;
  Strides scale_strides;
  const device T* biases;
  Strides bias_strides;
};

template <typename T, typename Strides>
inline Operand<T, Strides> operand(const device uint32_t* words, Strides word_strides,
                                   const device T* scales, Strides scale_strides,
                                   const device T* biases, Strides bias_strides) {
  return {words, word_strides, scales, scale_strides, biases, bias_strides};
}

// What a lane (later: a simdgroup) knows of each row: maximum, sum of weights, weighted values.
template <int ROWS, int COLUMNS>
struct State {
  float top[ROWS];
  float sum[ROWS];
  float acc[ROWS][COLUMNS];
};

// Lays ROWS query rows from row0 on out in `rows` [ROWS, D], where all simdgroups of the group read
// them: each row is read from device memory once. A barrier must follow.
template <typename T, int D, int GROUP, int QLEN, int ROWS, int THREADS, typename Strides>
inline void lay_queries(threadgroup T* rows, const device T* queries, Strides strides, int batch,
                        int kv_head, int row0, int thread_index) {
  for (int i = thread_index; i < ROWS * D; i += THREADS) {
    const int row = row0 + i / D;
    rows[i] = row < GROUP * QLEN
        ? queries[batch * strides[0] + (kv_head * GROUP + row / QLEN) * strides[1] +
                  (row % QLEN) * strides[2] + i % D * strides[3]]
        : T(0.0f);
  }
}

// Reads COUNT numbers of a row that lie `step` apart: at once where they are dense and aligned.
template <typename T, int COUNT>
inline void read_numbers(thread T (&to)[COUNT], const device T* row, long step) {
  constexpr int WIDTH = COUNT % 4 == 0 ? 4 : 2;
  if (COUNT % 2 == 0 && step == 1 && reinterpret_cast<size_t>(row) % (WIDTH * sizeof(T)) == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += WIDTH) {
      const vec<T, WIDTH> x = *(const device vec<T, WIDTH>*)(row + i);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        to[(i + j) % COUNT] = x[j];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      to[i] = row[i * step];
    }
  }
}

// (scale, bias) of every group of one key a lane: all lanes together read whole lines, once, and
// hand the pairs over as they are needed.
template <typename T, int GROUPS>
struct Pairs {
  vec<T, 2> pair[GROUPS];
};

template <typename T, int GROUPS, typename Strides>
inline Pairs<T, GROUPS> read_pairs(Operand<T, Strides> from, long key) {
  T scales[GROUPS];
  T biases[GROUPS];
  read_numbers(scales, from.scales + key * from.scale_strides[2], from.scale_strides[3]);
  read_numbers(biases, from.biases + key * from.bias_strides[2], from.bias_strides[3]);
  Pairs<T, GROUPS> pairs;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    pairs.pair[g] = vec<T, 2>(scales[g], biases[g]);
  }
  return pairs;
}

template <typename T>
inline vec<T, 2> from_lane(vec<T, 2> pair, ushort lane) {
  return as_type<vec<T, 2>>(simd_shuffle(as_type<uint>(pair), lane));
}
inline float2 from_lane(float2 pair, ushort lane) { return simd_shuffle(pair, lane); }

// The pair of a group, from the lane that read it.
template <typename T, int GROUPS>
inline float2 hand_over(const thread Pairs<T, GROUPS>& pairs, int group, int lane) {
  float2 found = float2(0.0f);
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    const vec<T, 2> pair = from_lane(pairs.pair[g], ushort(lane));
    if (GROUPS == 1 || g == group) {
      found = float2(float(pair.x), float(pair.y));
    }
  }
  return found;
}

// The mask of one key a lane in every row, -infinity where it is not `inside` the keys. Heads that
// share a mask read it once.
template <int QLEN, typename Mask, int WORDS>
inline void read_mask(thread float (&to)[WORDS], Mask mask, const thread long (&rows)[WORDS],
                      long step, int key, bool inside, bool shared) {
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    if (w >= QLEN && shared) {
      to[w] = to[w >= QLEN ? w - QLEN : 0];
    } else {
      to[w] = inside ? float(mask[rows[w] + key * step]) : -INFINITY;
    }
  }
}

// Attends to the key blocks first, first + step, ... below kv_len, for ROWS query rows from row0
// on, among the GROUP * QLEN rows of one KV head. Row i stands for query head i / QLEN of the
// group and query position i % QLEN. On return all teams of the simdgroup hold the same state.
template <typename T, int BITS, int QGROUP, int D, int DV, int GROUP, int QLEN, int MASK, int ROWS,
          int LANES, int CHUNK, int KEYS, int UNROLL, typename Mask, typename Strides>
inline void attend(
    thread State<ROWS, own_numbers<DV, LANES, CHUNK>()>& state, const threadgroup T* rows,
    Operand<T, Strides> k, Operand<T, Strides> v, Mask mask,
    Strides m_strides, float scale, int kv_len, int batch, int kv_head, int row0, int first,
    int step, int lane) {
  constexpr int TEAMS = 32 / LANES;
  constexpr int PASS = TEAMS * UNROLL;  // keys of one pass of the inner loop
  constexpr int COUNT = CHUNK * BITS / 32;  // words of a chunk
  constexpr int K_CHUNKS = D / CHUNK;
  constexpr int V_CHUNKS = DV / CHUNK;
  constexpr int K_OWN = (K_CHUNKS + LANES - 1) / LANES;
  constexpr int V_OWN = (V_CHUNKS + LANES - 1) / LANES;
  constexpr int WORDS = MASK == NONE ? 1 : ROWS;
  static_assert(KEYS % PASS == 0 && KEYS <= 32, "a block is whole passes and at most 32 keys");
  static_assert(CHUNK * BITS % 32 == 0 && QGROUP % CHUNK == 0, "a chunk is whole words of a group");
  static_assert(D % CHUNK == 0 && DV % CHUNK == 0, "rows are whole chunks");

  const int team = lane / LANES;
  const int member = lane % LANES;
  k.words += batch * k.word_strides[0] + kv_head * k.word_strides[1];
  k.scales += batch * k.scale_strides[0] + kv_head * k.scale_strides[1];
  k.biases += batch * k.bias_strides[0] + kv_head * k.bias_strides[1];
  v.words += batch * v.word_strides[0] + kv_head * v.word_strides[1];
  v.scales += batch * v.scale_strides[0] + kv_head * v.scale_strides[1];
  v.biases += batch * v.bias_strides[0] + kv_head * v.bias_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(k.words) | reinterpret_cast<size_t>(v.words)) % 16 == 0 &&
      (k.word_strides[2] | v.word_strides[2]) % 4 == 0 && k.word_strides[3] == 1 &&
      v.word_strides[3] == 1;

  float q[ROWS][K_OWN * CHUNK];
  float q_sum[ROWS][K_OWN];
  float shift[ROWS][V_OWN];  // weighted b - 2^BITS s, owed to all numbers of a chunk
  long mask_row[WORDS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = min(row0 + r, GROUP * QLEN - 1);
    const int head = kv_head * GROUP + row / QLEN;
#pragma unroll
    for (int j = 0; j < K_OWN; ++j) {
      const int c = member + LANES * j;
      q_sum[r][j] = 0.0f;
#pragma unroll
      for (int e = 0; e < CHUNK; ++e) {
        const float x = c < K_CHUNKS ? float(rows[r * D + c * CHUNK + e]) : 0.0f;
        q[r][j * CHUNK + e] = x * (scale * LOG2E);
        q_sum[r][j] += q[r][j * CHUNK + e];
      }
    }
    if (MASK > CAUSAL) {
      mask_row[MASK == NONE ? 0 : r] =
          batch * m_strides[0] + head * m_strides[1] + (row % QLEN) * m_strides[2];
    }
    state.top[r] = FLOOR;
    state.sum[r] = 0.0f;
#pragma unroll
    for (int e = 0; e < V_OWN * CHUNK; ++e) {
      state.acc[r][e] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < V_OWN; ++j) {
      shift[r][j] = 0.0f;
    }
  }

  // The mask of the block at hand, one key a lane; it is read one block ahead.
  const bool shared = m_strides[1] == 0;
  float next[WORDS];
  if (MASK > CAUSAL) {
    read_mask<QLEN>(next, mask, mask_row, m_strides[3], first * KEYS + lane,
                    lane < KEYS && first * KEYS + lane < kv_len, shared);
  }

  for (int block = first; block * KEYS < kv_len; block += step) {
    float bias[WORDS];
    uint seen[WORDS];  // bit i: the row sees key i of the block
    uint any = 0;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      const int left = kv_len - block * KEYS;
      if (MASK == NONE) {
        seen[w] = first_bits(left);
      } else if (MASK == CAUSAL) {
        seen[w] = first_bits(left - QLEN + 1 + min(row0 + w, GROUP * QLEN - 1) % QLEN);
      } else {
        bias[w] = next[w];
        const bool visible = MASK == ADDITIVE ? bias[w] != -INFINITY : bias[w] > 0.0f;
        seen[w] = uint(static_cast<simd_vote::vote_t>(simd_ballot(visible)));
      }
      any |= seen[w];
    }
    if (MASK > CAUSAL) {
      const int key = (block + step) * KEYS + lane;
      read_mask<QLEN>(next, mask, mask_row, m_strides[3], key, lane < KEYS && key < kv_len,
                      shared);
    }
    if (any == 0) {
      continue;
    }

    const long pair_key = min(block * KEYS + min(lane, KEYS - 1), kv_len - 1);
    const auto k_pairs = read_pairs<T, D / QGROUP>(k, pair_key);
    const auto v_pairs = read_pairs<T, DV / QGROUP>(v, pair_key);

    for (int pass = 0; pass < KEYS; pass += PASS) {
      if (KEYS > PASS && ((any >> pass) & first_bits(PASS)) == 0) {
        continue;
      }
      Words<COUNT> k_words[UNROLL][K_OWN];
      Words<COUNT> v_words[UNROLL][V_OWN];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const long key = min(block * KEYS + pass + u * TEAMS + team, kv_len - 1);
#pragma unroll
        for (int j = 0; j < K_OWN; ++j) {
          const int c = member + LANES * j;
          if (K_CHUNKS % LANES == 0 || c < K_CHUNKS) {
            k_words[u][j] = read_words<COUNT>(
                k.words + key * k.word_strides[2] + c * COUNT * k.word_strides[3],
                k.word_strides[3], wide);
          } else {
            k_words[u][j] = {};
          }
        }
#pragma unroll
        for (int j = 0; j < V_OWN; ++j) {
          const int c = member + LANES * j;
          if (V_CHUNKS % LANES == 0 || c < V_CHUNKS) {
            v_words[u][j] = read_words<COUNT>(
                v.words + key * v.word_strides[2] + c * COUNT * v.word_strides[3],
                v.word_strides[3], wide);
          } else {
            v_words[u][j] = {};
          }
        }
      }

      float score[ROWS][UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          score[r][u] = 0.0f;
        }
#pragma unroll
        for (int j = 0; j < K_OWN; ++j) {
          float dot[ROWS];
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            dot[r] = 0.0f;
          }
#pragma unroll
          for (int e = 0; e < CHUNK; ++e) {
            const float x = raised<BITS>(k_words[u][j], e);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
              dot[r] = fma(q[r][j * CHUNK + e], x, dot[r]);
            }
          }
          const float2 pair = hand_over(
              k_pairs, (member + LANES * j) * CHUNK / QGROUP, pass + u * TEAMS + team);
          const float rest = fma(-raise<BITS>(), pair.x, pair.y);
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            score[r][u] = fma(pair.x, dot[r], fma(rest, q_sum[r][j], score[r][u]));
          }
        }
      }
#pragma unroll
      for (int away = LANES / 2; away > 0; away /= 2) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
          for (int u = 0; u < UNROLL; ++u) {
            score[r][u] += simd_shuffle_xor(score[r][u], away);
          }
        }
      }

#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const int w = MASK == NONE ? 0 : r;
        float top = state.top[r];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const int at = pass + u * TEAMS + team;
          if (MASK == ADDITIVE) {
            score[r][u] = max(fma(simd_shuffle(bias[w], at), LOG2E, score[r][u]), HIDDEN);
          }
          score[r][u] = (seen[w] >> at) & 1u ? score[r][u] : HIDDEN;
          top = max(top, score[r][u]);
        }
        const float fade = fast::exp2(state.top[r] - top);
        state.top[r] = top;
        state.sum[r] *= fade;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          score[r][u] = fast::exp2(score[r][u] - top);
          state.sum[r] += score[r][u];
        }
#pragma unroll
        for (int e = 0; e < V_OWN * CHUNK; ++e) {
          state.acc[r][e] *= fade;
        }
#pragma unroll
        for (int j = 0; j < V_OWN; ++j) {
          shift[r][j] *= fade;
        }
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int j = 0; j < V_OWN; ++j) {
          const float2 pair = hand_over(
              v_pairs, (member + LANES * j) * CHUNK / QGROUP, pass + u * TEAMS + team);
          const float rest = fma(-raise<BITS>(), pair.x, pair.y);
          float weight[ROWS];
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            weight[r] = score[r][u] * pair.x;
            shift[r][j] = fma(score[r][u], rest, shift[r][j]);
          }
#pragma unroll
          for (int e = 0; e < CHUNK; ++e) {
            const float x = raised<BITS>(v_words[u][j], e);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
              state.acc[r][j * CHUNK + e] = fma(weight[r], x, state.acc[r][j * CHUNK + e]);
            }
          }
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
#pragma unroll
    for (int e = 0; e < V_OWN * CHUNK; ++e) {
      state.acc[r][e] += shift[r][e / CHUNK];
    }
  }

  // Teams become one.
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
#pragma unroll
    for (int away = LANES; away < 32; away *= 2) {
      const float other = simd_shuffle_xor(state.top[r], away);
      const float top = max(state.top[r], other);
      const float fade = fast::exp2(state.top[r] - top);
      state.top[r] = top;
      state.sum[r] *= fade;
      state.sum[r] += simd_shuffle_xor(state.sum[r], away);
#pragma unroll
      for (int e = 0; e < V_OWN * CHUNK; ++e) {
        state.acc[r][e] *= fade;
        state.acc[r][e] += simd_shuffle_xor(state.acc[r][e], away);
      }
    }
  }
}

// Simdgroups become one, row by row: every simdgroup lays its weighted values of row r out in
// `columns` [SIMDGROUPS, DV]; `tops` and `sums` [SIMDGROUPS, ROWS] were filled before.
template <int DV, int LANES, int CHUNK, int ROWS, int SIMDGROUPS, int COLUMNS>
inline void lay_out(const thread State<ROWS, COLUMNS>& state, int r, threadgroup float* tops,
                    threadgroup float* columns, int simdgroup, int lane) {
  float top = FLOOR;
#pragma unroll
  for (int s = 0; s < SIMDGROUPS; ++s) {
    top = max(top, tops[s * ROWS + r]);
  }
  const float fade = fast::exp2(state.top[r] - top);
  if (lane < LANES) {
#pragma unroll
    for (int e = 0; e < COLUMNS; ++e) {
      const int column = (lane + LANES * (e / CHUNK)) * CHUNK + e % CHUNK;
      if (column < DV) {
        columns[simdgroup * DV + column] = state.acc[r][e] * fade;
      }
    }
  }
}

// A row that sees no key at all has equal weights on the keys with the largest mask value (on all
// of them under a bool or causal mask), as a softmax over equally hidden scores has; where every
// value is -infinity it is NaN. Rare, so that it is merely right: one thread, one column.
template <typename T, int BITS, int QGROUP, int MASK, typename Mask, typename Strides>
inline float blind(Operand<T, Strides> v, int batch, int kv_head, int column, Mask mask,
                   long mask_stride, int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = max(top, MASK == ADDITIVE ? float(mask[key * mask_stride]) : 0.0f);
  }
  v.words += batch * v.word_strides[0] + kv_head * v.word_strides[1];
  v.scales += batch * v.scale_strides[0] + kv_head * v.scale_strides[1];
  v.biases += batch * v.bias_strides[0] + kv_head * v.bias_strides[1];
  const int word = column * BITS / 32;
  const int from = column * BITS % 32;
  const int group = column / QGROUP;
  float sum = 0.0f;
  float count = 0.0f;
  for (long key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE || float(mask[key * mask_stride]) == top) {
      const device uint32_t* row = v.words + key * v.word_strides[2];
      uint bits = row[word * v.word_strides[3]] >> from;
      if (from + BITS > 32) {
        bits |= row[(word + 1) * v.word_strides[3]] << (32 - from);
      }
      sum += fma(float(bits & ((1u << BITS) - 1u)),
                 float(v.scales[key * v.scale_strides[2] + group * v.scale_strides[3]]),
                 float(v.biases[key * v.bias_strides[2] + group * v.bias_strides[3]]));
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

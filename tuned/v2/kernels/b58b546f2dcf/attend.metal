// Grouped-query decode attention, the part that every launch shares.
//
// A simdgroup takes KEYS keys at a time. Its 32 lanes form TEAMS teams of LANES lanes; a team
// takes one key, a lane of it 16-byte chunks of that key's row, and every chunk loaded serves all
// ROWS query rows of the KV head. Each team runs its own online softmax in float32.
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

template <typename T>
struct alignas(16) Chunk {
  vec<T, 4> part[4 / sizeof(T)];
};

// Reads 16 bytes of a row whose elements lie `step` apart, from element `first` on: at once where
// the row is dense and aligned, else element by element.
template <typename T>
inline Chunk<T> read_chunk(const device T* row, int first, long step, bool wide) {
  Chunk<T> chunk;
  if (wide) {
    chunk = *(const device Chunk<T>*)(row + first);
  } else {
#pragma unroll
    for (int e = 0; e < 16 / int(sizeof(T)); ++e) {
      chunk.part[e / 4][e % 4] = row[(first + e) * step];
    }
  }
  return chunk;
}

template <typename T>
inline float element(const thread Chunk<T>& chunk, int e) {
  return float(chunk.part[e / 4][e % 4]);
}

inline uint first_bits(int n) {
  return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u;
}

// Elements of a row that one of LANES lanes holds, in whole chunks.
template <typename T, int WIDTH, int LANES>
constexpr int own_elements() {
  return (WIDTH / (16 / int(sizeof(T))) + LANES - 1) / LANES * (16 / int(sizeof(T)));
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
  constexpr int VEC = 16 / int(sizeof(T));
  for (int i = thread_index; i < ROWS * (D / VEC); i += THREADS) {
    const int row = row0 + i / (D / VEC);
    if (row < GROUP * QLEN) {
      const device T* query = queries + batch * strides[0] +
          (kv_head * GROUP + row / QLEN) * strides[1] + (row % QLEN) * strides[2];
      const bool wide = reinterpret_cast<size_t>(query) % 16 == 0 && strides[3] == 1;
      const Chunk<T> chunk = read_chunk(query, i % (D / VEC) * VEC, strides[3], wide);
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        rows[i * VEC + e] = chunk.part[e / 4][e % 4];
      }
    } else {
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        rows[i * VEC + e] = T(0.0f);
      }
    }
  }
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
template <typename T, int D, int DV, int GROUP, int QLEN, int MASK, int ROWS, int LANES, int KEYS,
          int UNROLL, typename Mask, typename Strides>
inline void attend(
    thread State<ROWS, own_elements<T, DV, LANES>()>& state, const threadgroup T* rows,
    const device T* keys, Strides k_strides, const device T* values,
    Strides v_strides, Mask mask, Strides m_strides, float scale, int kv_len, int batch,
    int kv_head, int row0, int first, int step, int lane) {
  constexpr int VEC = 16 / int(sizeof(T));
  constexpr int TEAMS = 32 / LANES;
  constexpr int PASS = TEAMS * UNROLL;  // keys of one pass of the inner loop
  constexpr int K_CHUNKS = D / VEC;
  constexpr int V_CHUNKS = DV / VEC;
  constexpr int K_OWN = (K_CHUNKS + LANES - 1) / LANES;
  constexpr int V_OWN = (V_CHUNKS + LANES - 1) / LANES;
  constexpr int WORDS = MASK == NONE ? 1 : ROWS;
  static_assert(KEYS % PASS == 0 && KEYS <= 32, "a block is whole passes and at most 32 keys");
  static_assert(D % VEC == 0 && DV % VEC == 0, "rows are whole chunks");

  const int team = lane / LANES;
  const int member = lane % LANES;
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_strides[2] | v_strides[2]) % VEC == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  float q[ROWS][K_OWN * VEC];
  long mask_row[WORDS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = min(row0 + r, GROUP * QLEN - 1);
    const int head = kv_head * GROUP + row / QLEN;
#pragma unroll
    for (int j = 0; j < K_OWN; ++j) {
      const int c = member + LANES * j;
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        const float x = c < K_CHUNKS ? float(rows[r * D + c * VEC + e]) : 0.0f;
        q[r][j * VEC + e] = x * (scale * LOG2E);
      }
    }
    if (MASK > CAUSAL) {
      mask_row[MASK == NONE ? 0 : r] =
          batch * m_strides[0] + head * m_strides[1] + (row % QLEN) * m_strides[2];
    }
    state.top[r] = FLOOR;
    state.sum[r] = 0.0f;
#pragma unroll
    for (int e = 0; e < V_OWN * VEC; ++e) {
      state.acc[r][e] = 0.0f;
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

    for (int pass = 0; pass < KEYS; pass += PASS) {
      if (KEYS > PASS && ((any >> pass) & first_bits(PASS)) == 0) {
        continue;
      }
      Chunk<T> k[UNROLL][K_OWN];
      Chunk<T> v[UNROLL][V_OWN];
      if (wide) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const int key = min(block * KEYS + pass + u * TEAMS + team, kv_len - 1);
#pragma unroll
          for (int j = 0; j < K_OWN; ++j) {
            const int c = member + LANES * j;
            k[u][j] = K_CHUNKS % LANES == 0 || c < K_CHUNKS
                ? read_chunk(keys + key * k_strides[2], c * VEC, 1, true)
                : Chunk<T>{};
          }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const int key = min(block * KEYS + pass + u * TEAMS + team, kv_len - 1);
#pragma unroll
          for (int j = 0; j < V_OWN; ++j) {
            const int c = member + LANES * j;
            v[u][j] = V_CHUNKS % LANES == 0 || c < V_CHUNKS
                ? read_chunk(values + key * v_strides[2], c * VEC, 1, true)
                : Chunk<T>{};
          }
        }
      } else {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const int key = min(block * KEYS + pass + u * TEAMS + team, kv_len - 1);
#pragma unroll
          for (int j = 0; j < K_OWN; ++j) {
            const int c = member + LANES * j;
            k[u][j] = K_CHUNKS % LANES == 0 || c < K_CHUNKS
                ? read_chunk(keys + key * k_strides[2], c * VEC, k_strides[3], false)
                : Chunk<T>{};
          }
#pragma unroll
          for (int j = 0; j < V_OWN; ++j) {
            const int c = member + LANES * j;
            v[u][j] = V_CHUNKS % LANES == 0 || c < V_CHUNKS
                ? read_chunk(values + key * v_strides[2], c * VEC, v_strides[3], false)
                : Chunk<T>{};
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
#pragma unroll
          for (int e = 0; e < VEC; ++e) {
            const float x = element(k[u][j], e);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
              score[r][u] = fma(q[r][j * VEC + e], x, score[r][u]);
            }
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
        for (int e = 0; e < V_OWN * VEC; ++e) {
          state.acc[r][e] *= fade;
        }
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int j = 0; j < V_OWN; ++j) {
#pragma unroll
          for (int e = 0; e < VEC; ++e) {
            const float x = element(v[u][j], e);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
              state.acc[r][j * VEC + e] = fma(score[r][u], x, state.acc[r][j * VEC + e]);
            }
          }
        }
      }
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
      for (int e = 0; e < V_OWN * VEC; ++e) {
        state.acc[r][e] *= fade;
        state.acc[r][e] += simd_shuffle_xor(state.acc[r][e], away);
      }
    }
  }
}

// Simdgroups become one, row by row: every simdgroup lays its weighted values of row r out in
// `columns` [SIMDGROUPS, DV]; `tops` and `sums` [SIMDGROUPS, ROWS] were filled before.
template <typename T, int DV, int LANES, int ROWS, int SIMDGROUPS, int COLUMNS>
inline void lay_out(const thread State<ROWS, COLUMNS>& state, int r, threadgroup float* tops,
                    threadgroup float* columns, int simdgroup, int lane) {
  constexpr int VEC = 16 / int(sizeof(T));
  float top = FLOOR;
#pragma unroll
  for (int s = 0; s < SIMDGROUPS; ++s) {
    top = max(top, tops[s * ROWS + r]);
  }
  const float fade = fast::exp2(state.top[r] - top);
  if (lane < LANES) {
#pragma unroll
    for (int e = 0; e < COLUMNS; ++e) {
      const int column = (lane + LANES * (e / VEC)) * VEC + e % VEC;
      if (column < DV) {
        columns[simdgroup * DV + column] = state.acc[r][e] * fade;
      }
    }
  }
}

// A row that sees no key at all has equal weights on the keys with the largest mask value (on all
// of them under a bool or causal mask), as a softmax over equally hidden scores has; where every
// value is -infinity it is NaN. Rare, so that it is merely right: one thread, one column.
template <typename T, int MASK, typename Mask>
inline float blind(const device T* values, long value_stride, Mask mask, long mask_stride,
                   int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = max(top, MASK == ADDITIVE ? float(mask[key * mask_stride]) : 0.0f);
  }
  float sum = 0.0f;
  float count = 0.0f;
  for (int key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE || float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

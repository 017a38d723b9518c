// Attention for many query rows in simdgroup matrices: the part that every launch shares.
//
// The GROUP query heads of a KV head, position by position, are rows of one matrix: row i stands
// for head i / q_len of the group and query position i % q_len. A threadgroup takes 8 TILES *
// ROW_GROUPS rows and stages KEYS keys and values at a time in threadgroup memory; KEY_GROUPS
// simdgroups for the same rows share them. A simdgroup holds its queries and its weighted sums in
// 8x8 matrices and runs an online softmax in float32.
//
// Scores are in base 2. A key that a row must not see scores HIDDEN. A running maximum starts at
// FLOOR, below any real score and yet far above HIDDEN: no infinity ever enters the arithmetic.
constant constexpr float LOG2E = 1.44269504088896f;
constant constexpr float HIDDEN = -3.4e38f;
constant constexpr float FLOOR = -1.7e38f;
constant constexpr float HIDING = -2.36e38f;  // a bias that, times LOG2E, is below HIDDEN

// Kinds of mask, the values of the template argument MASK.
constant constexpr int CAUSAL = 1;
constant constexpr int ADDITIVE = 3;  // 0: none, 2: bool

// 4 bytes of a row whose elements lie `step` apart, from element `at` on.
template <typename T>
inline uint word(const device T* row, int at, long step) {
  return as_type<uint>(vec<T, 2>(row[at * step], row[(at + 1) * step]));
}
inline uint word(const device float* row, int at, long step) {
  return as_type<uint>(row[at * step]);
}

// 16 bytes of a row, from element `first` on: at once where the row is dense and aligned.
template <typename T>
inline uint4 read_chunk(const device T* row, int first, long step, bool wide) {
  constexpr int PACKED = 4 / int(sizeof(T));
  uint4 chunk;
  if (wide) {
    chunk = *(const device uint4*)(row + first);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      chunk[e] = word(row, first + e * PACKED, step);
    }
  }
  return chunk;
}

// Elements of a staged row: 16 bytes more than it has, off the banks' period.
template <typename T, int WIDTH>
constexpr int staged() {
  return WIDTH + 16 / int(sizeof(T));
}

// Columns of the output that the simdgroups lay out at a time, each 8 rows of them in float32.
template <int DV>
constexpr int laid_out() {
  return DV % 32 == 0 ? 32 : DV % 16 == 0 ? 16 : 8;
}

// 16-byte units of threadgroup memory: a tile of keys and one of values, later the output's rows.
template <typename T, int D, int DV, int KEYS, int SIMDGROUPS>
constexpr int pool() {
  constexpr int tiles = KEYS * (staged<T, D>() + staged<T, DV>()) * int(sizeof(T)) / 16;
  constexpr int rows = SIMDGROUPS * 2 * laid_out<DV>();
  return tiles > rows ? tiles : rows;
}

// A thread's share of KEYS rows of keys or values: read first, staged when all are done with the
// tile before. Rows beyond the last one are as the last.
template <typename T, int WIDTH, int KEYS, int THREADS>
struct Share {
  static constant constexpr int VEC = 16 / int(sizeof(T));
  static constant constexpr int CHUNKS = WIDTH / VEC;
  static constant constexpr int OWN = (KEYS * CHUNKS + THREADS - 1) / THREADS;
  uint4 chunk[OWN];

  template <typename Strides>
  void read(const device T* rows, Strides strides, int first, int kv_len, bool wide,
            int thread_index) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int at = min(thread_index + i * THREADS, KEYS * CHUNKS - 1);
      const long key = min(first + at / CHUNKS, kv_len - 1);
      chunk[i] =
          read_chunk(rows + key * strides[2], at % CHUNKS * VEC, wide ? 1 : strides[3], wide);
    }
  }

  void stage(threadgroup T* to, int thread_index) const {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int at = thread_index + i * THREADS;
      if (KEYS * CHUNKS % THREADS == 0 || at < KEYS * CHUNKS) {
        *(threadgroup uint4*)(to + at / CHUNKS * staged<T, WIDTH>() + at % CHUNKS * VEC) =
            chunk[i];
      }
    }
  }
};

// What a simdgroup knows of its rows. A lane has two neighbouring columns of one row in every
// matrix: row own_row(lane) of the 8, columns own_column(lane) and the next. top and sum are of
// this row; sum is complete over the four lanes that share it only in the end.
template <int TILES, int MATRICES>
struct State {
  float top[TILES];
  float sum[TILES];
  simdgroup_matrix<float, 8, 8> out[TILES][MATRICES];
};

inline int own_row(int lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline int own_column(int lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

// Attends to the tiles split, split + splits, ... for the rows from row0 on of one KV head.
template <typename T, int D, int DV, int GROUP, int MASK, int TILES, int ROW_GROUPS,
          int KEY_GROUPS, int KEYS, typename Mask, typename Strides>
inline void attend(thread State<TILES, DV / 8>& state, threadgroup T* key_tile,
                   threadgroup T* value_tile, const device T* queries, Strides q_strides,
                   const device T* keys, Strides k_strides, const device T* values,
                   Strides v_strides, Mask mask, Strides m_strides, float scale, int q_len,
                   int kv_len, int batch, int kv_head, int row0, int split, int splits,
                   int simdgroup, int lane) {
  constexpr int THREADS = 32 * ROW_GROUPS * KEY_GROUPS;
  constexpr int OWN = KEYS / KEY_GROUPS;  // keys of a simdgroup in a tile
  constexpr int K_STEP = staged<T, D>();
  constexpr int V_STEP = staged<T, DV>();
  constexpr int VEC = 16 / int(sizeof(T));
  static_assert(D % 8 == 0 && DV % 8 == 0 && OWN % 8 == 0, "shape not carried");

  const int rows = GROUP * q_len;
  const int thread_index = simdgroup * 32 + lane;
  const int key_group = simdgroup / ROW_GROUPS;
  queries += batch * q_strides[0] + kv_head * GROUP * q_strides[1];
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  const long mask0 = batch * m_strides[0] + kv_head * GROUP * m_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_strides[2] | v_strides[2]) % VEC == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  // The queries come through the tiles' memory, PASS rows at a time. Rows beyond the last one
  // repeat it, and are never written.
  constexpr int ROWS = 8 * TILES * ROW_GROUPS;
  constexpr int PASS = KEYS * (K_STEP + V_STEP) / K_STEP / 8 * 8;
  constexpr int CHUNKS = D / VEC;
  simdgroup_matrix<T, 8, 8> q[TILES][D / 8];
  for (int held = 0; held < ROWS; held += PASS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int at = thread_index; at < min(PASS, ROWS - held) * CHUNKS; at += THREADS) {
      const int row = min(row0 + held + at / CHUNKS, rows - 1);
      const device T* query = queries + row / q_len * q_strides[1] + row % q_len * q_strides[2];
      *(threadgroup uint4*)(key_tile + at / CHUNKS * K_STEP + at % CHUNKS * VEC) = read_chunk(
          query, at % CHUNKS * VEC, q_strides[3],
          reinterpret_cast<size_t>(query) % 16 == 0 && q_strides[3] == 1);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const int row = (simdgroup % ROW_GROUPS * TILES + t) * 8 - held;
      if (row >= 0 && row < PASS) {
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
          simdgroup_load(q[t][d], key_tile + row * K_STEP + 8 * d, K_STEP);
        }
      }
    }
  }
  int seen[TILES];  // so many keys this lane's row may see
  long mask_row[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int row =
        min(row0 + (simdgroup % ROW_GROUPS * TILES + t) * 8 + own_row(lane), rows - 1);
    const int position = row % q_len;
    seen[t] = MASK == CAUSAL ? kv_len - q_len + position + 1 : kv_len;
    mask_row[t] = mask0 + row / q_len * m_strides[1] + position * m_strides[2];
    state.top[t] = FLOOR;
    state.sum[t] = 0.0f;
#pragma unroll
    for (int d = 0; d < DV / 8; ++d) {
      state.out[t][d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  // How many keys some row of the threadgroup may see: what lies beyond is not even staged. And
  // of this simdgroup's rows, the fewest and the most.
  int end = kv_len;
  int least = seen[0];
  int most = seen[0];
  if (MASK == CAUSAL) {
    const int last = min(row0 + 8 * TILES * ROW_GROUPS, rows) - 1;
    end -= last / q_len == row0 / q_len ? q_len - 1 - last % q_len : 0;
#pragma unroll
    for (int t = 1; t < TILES; ++t) {
      least = min(least, seen[t]);
      most = max(most, seen[t]);
    }
    least = simd_min(least);
    most = simd_max(most);
  }

  for (int tile = split; tile * KEYS < end; tile += splits) {
    const int first = tile * KEYS + key_group * OWN;
    Share<T, D, KEYS, THREADS> k;
    Share<T, DV, KEYS, THREADS> v;
    k.read(keys, k_strides, tile * KEYS, kv_len, wide, thread_index);
    v.read(values, v_strides, tile * KEYS, kv_len, wide, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    k.stage(key_tile, thread_index);
    v.stage(value_tile, thread_index);
    // This lane's biases; a bool mask's are 0 or HIDDEN.
    float bias[TILES][OWN / 8][2];
    bool busy = first < most;
    if (MASK > CAUSAL) {
      bool any = false;
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int n = 0; n < OWN / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int key = first + 8 * n + own_column(lane) + e;
            float x = HIDDEN;
            if (key < kv_len) {
              x = float(mask[mask_row[t] + key * m_strides[3]]);
              x = MASK == ADDITIVE ? max(x, HIDDEN) : x > 0.0f ? 0.0f : HIDDEN;
            }
            bias[t][n][e] = x;
            any = any || x > HIDING;
          }
        }
      }
      busy = simd_any(any);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (!busy) {
      continue;
    }

    const bool whole = first + OWN <= least;
    simdgroup_matrix<float, 8, 8> score[TILES][OWN / 8];
#pragma unroll
    for (int n = 0; n < OWN / 8; ++n) {
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        score[t][n] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      }
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
        simdgroup_matrix<T, 8, 8> turned;
        simdgroup_load(turned, key_tile + (key_group * OWN + 8 * n) * K_STEP + 8 * d, K_STEP,
                       ulong2(0, 0), true);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          simdgroup_multiply_accumulate(score[t][n], q[t][d], turned, score[t][n]);
        }
      }
    }

    simdgroup_matrix<T, 8, 8> weight[TILES][OWN / 8];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      float top = state.top[t];
#pragma unroll
      for (int n = 0; n < OWN / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float x = score[t][n].thread_elements()[e] * (scale * LOG2E);
          if (MASK > CAUSAL) {
            x = bias[t][n][e] > HIDING ? fma(bias[t][n][e], LOG2E, x) : HIDDEN;
          } else {
            x = whole || first + 8 * n + own_column(lane) + e < seen[t] ? x : HIDDEN;
          }
          score[t][n].thread_elements()[e] = x;
          top = max(top, x);
        }
      }
      top = max(top, simd_shuffle_xor(top, 1));
      top = max(top, simd_shuffle_xor(top, 8));
      const float fade = fast::exp2(state.top[t] - top);
      state.top[t] = top;
      state.sum[t] *= fade;
#pragma unroll
      for (int n = 0; n < OWN / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = fast::exp2(score[t][n].thread_elements()[e] - top);
          state.sum[t] += x;
          weight[t][n].thread_elements()[e] = T(x);
        }
      }
      if (simd_any(fade != 1.0f)) {
#pragma unroll
        for (int d = 0; d < DV / 8; ++d) {
          state.out[t][d].thread_elements()[0] *= fade;
          state.out[t][d].thread_elements()[1] *= fade;
        }
      }
    }

#pragma unroll
    for (int n = 0; n < OWN / 8; ++n) {
#pragma unroll
      for (int d = 0; d < DV / 8; ++d) {
        simdgroup_matrix<T, 8, 8> value;
        simdgroup_load(value, value_tile + (key_group * OWN + 8 * n) * V_STEP + 8 * d, V_STEP);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          simdgroup_multiply_accumulate(state.out[t][d], weight[t][n], value, state.out[t][d]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    state.sum[t] += simd_shuffle_xor(state.sum[t], 1);
    state.sum[t] += simd_shuffle_xor(state.sum[t], 8);
  }
}

// The simdgroups of the same rows agree on a maximum; `tops` and `sums` [ROWS], of all rows of the
// threadgroup, get it and the sum of weights, `others` [2][SIMDGROUPS][8 TILES] is room for it.
template <int TILES, int MATRICES, int ROW_GROUPS, int KEY_GROUPS>
inline void settle(thread State<TILES, MATRICES>& state, threadgroup float* tops,
                   threadgroup float* sums, threadgroup float* others, int simdgroup, int lane) {
  constexpr int ALL = ROW_GROUPS * KEY_GROUPS * 8 * TILES;
  const int row_group = simdgroup % ROW_GROUPS;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int at = simdgroup * 8 * TILES + 8 * t + own_row(lane);
    if (own_column(lane) == 0) {
      others[at] = state.top[t];
      others[ALL + at] = state.sum[t];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int row = row_group * 8 * TILES + 8 * t + own_row(lane);
    float top = FLOOR;
#pragma unroll
    for (int k = 0; k < KEY_GROUPS; ++k) {
      top = max(top, others[k * ROW_GROUPS * 8 * TILES + row]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEY_GROUPS; ++k) {
      const int at = k * ROW_GROUPS * 8 * TILES + row;
      sum += others[ALL + at] * fast::exp2(others[at] - top);
    }
    if (simdgroup < ROW_GROUPS && own_column(lane) == 0) {
      tops[row] = top;
      sums[row] = sum;
    }
    if (KEY_GROUPS > 1) {
      const float fade = fast::exp2(state.top[t] - top);
#pragma unroll
      for (int d = 0; d < MATRICES; ++d) {
        state.out[t][d].thread_elements()[0] *= fade;
        state.out[t][d].thread_elements()[1] *= fade;
      }
    }
  }
}

// Lays WIDE columns from column 8 `matrix` on of every simdgroup's row tile out: rows
// [SIMDGROUPS][8][WIDE].
template <int WIDE, int MATRICES>
inline void lay_out(const thread simdgroup_matrix<float, 8, 8> (&out)[MATRICES], int matrix,
                    threadgroup float* rows, int simdgroup) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int d = 0; d < WIDE / 8; ++d) {
    simdgroup_store(out[matrix + d], rows + simdgroup * 8 * WIDE + 8 * d, WIDE);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// A row that an additive mask hides from every key has equal weights on the keys with the largest
// mask value, as a softmax over equally hidden scores has; where every value is -infinity it is
// NaN. Rare, so that it is merely right: one thread, one column. Under other masks such a row is
// zeros: a padded prompt has many of them.
template <typename T, typename Mask>
inline float blind(const device T* values, long value_stride, Mask mask, long mask_stride,
                   int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = max(top, float(mask[key * mask_stride]));
  }
  float sum = 0.0f;
  float count = 0.0f;
  for (int key = 0; key < kv_len; ++key) {
    if (float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

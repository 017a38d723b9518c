// Decode attention for wide rows: the part that every launch shares.
//
// A threadgroup takes KEYS keys at a time for ROWS query rows of one KV head. Its simdgroups share
// the columns: each stages its own part of every key row in threadgroup memory, once, for scores
// and output, and holds the same part of the queries and of the output in 8x8 matrices.
//   scores: every simdgroup's columns give a partial sum; the sums meet in threadgroup memory,
//   where KEYS lanes a row make the weights of an online softmax, once for all simdgroups
//   output: every simdgroup multiplies the weights with its own columns
// Where the values are the keys (LATENT) a row is read once.
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

// Elements of a staged row of COLUMNS columns: 16 bytes more, off the banks' period.
template <typename T, int COLUMNS>
constexpr int staged() {
  return COLUMNS + 16 / int(sizeof(T));
}

// Partial sums lie in tiles of 8 keys, row by row: neither side meets a bank twice.
template <int ROWS>
constexpr int tile_of_sums() {
  return 8 * ROWS + 16;
}

// The largest power of two of simdgroups, at most 8: so many make the weights.
constexpr int makers(int simdgroups) {
  return simdgroups >= 8 ? 8 : simdgroups >= 4 ? 4 : simdgroups >= 2 ? 2 : 1;
}

// The columns first to first + COLUMNS - 1 of KEYS keys, by the 32 lanes of a simdgroup.
template <typename T, int COLUMNS, int KEYS>
struct Part {
  static constant constexpr int VEC = 16 / int(sizeof(T));
  static constant constexpr int CHUNKS = COLUMNS / VEC;
  static constant constexpr int OWN = KEYS * CHUNKS / 32;
  uint4 chunk[OWN];

  template <typename Strides>
  void read(const device T* rows, Strides strides, int first, int key0, int kv_len, bool wide,
            int lane) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int at = lane + 32 * i;
      const long key = min(key0 + at / CHUNKS, kv_len - 1);
      chunk[i] = read_chunk(
          rows + key * strides[2], first + at % CHUNKS * VEC, wide ? 1 : strides[3], wide);
    }
  }

  void stage(threadgroup T* to, int lane) const {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int at = lane + 32 * i;
      *(threadgroup uint4*)(to + at / CHUNKS * staged<T, COLUMNS>() + at % CHUNKS * VEC) =
          chunk[i];
    }
  }
};

// Attends to the key blocks first, first + step, ... below kv_len, for ROWS query rows from row0
// on, among the GROUP * QLEN rows of one KV head. Row i stands for query head i / QLEN of the group
// and query position i % QLEN. `out` is the weighted sum in the simdgroup's own columns; tops and
// sums [ROWS] get every row's maximum and sum of weights.
//
// Threadgroup memory: tile [KEYS][staged] of this simdgroup, partial
// [SIMDGROUPS][KEYS / 8][tile_of_sums], weights [ROWS][KEYS], fades [ROWS].
template <typename T, int D, int DV, int GROUP, int QLEN, int MASK, int ROWS, int KEYS,
          int SIMDGROUPS, bool LATENT, typename Mask, typename Strides>
inline void attend(
    thread simdgroup_matrix<float, 8, 8> (&out)[ROWS / 8][DV / SIMDGROUPS / 8],
    threadgroup T* tile, threadgroup float* partial, threadgroup T* weights,
    threadgroup float* fades, threadgroup float* tops, threadgroup float* sums,
    const device T* queries, Strides q_strides, const device T* keys, Strides k_strides,
    const device T* values, Strides v_strides, Mask mask, Strides m_strides, float scale,
    int kv_len, int batch, int kv_head, int row0, int first, int step, int simdgroup, int lane) {
  constexpr int COLUMNS = D / SIMDGROUPS;
  constexpr int V_COLUMNS = DV / SIMDGROUPS;
  constexpr int K_STEP = staged<T, COLUMNS>();
  constexpr int V_STEP = staged<T, V_COLUMNS>();
  constexpr int VEC = 16 / int(sizeof(T));
  constexpr int MAKERS = makers(SIMDGROUPS);
  constexpr int OWN = (ROWS * KEYS + 32 * MAKERS - 1) / (32 * MAKERS);  // scores of a lane
  static_assert(D % (8 * SIMDGROUPS) == 0 && DV % (8 * SIMDGROUPS) == 0 && KEYS % 8 == 0 &&
                ROWS % 8 == 0 && KEYS <= 32 && (!LATENT || D == DV), "shape not carried");
  static_assert(KEYS * COLUMNS / VEC % 32 == 0 && KEYS * V_COLUMNS / VEC % 32 == 0,
                "every lane stages as many chunks");

  queries += batch * q_strides[0];
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_strides[2] | v_strides[2]) % VEC == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  // The queries come through the tile, 8 rows at a time. Rows beyond the last one repeat it, and
  // are never written.
  simdgroup_matrix<T, 8, 8> q[ROWS / 8][COLUMNS / 8];
#pragma unroll
  for (int r = 0; r < ROWS / 8; ++r) {
    for (int at = lane; at < 8 * COLUMNS; at += 32) {
      const int row = min(row0 + 8 * r + at / COLUMNS, GROUP * QLEN - 1);
      const int column = simdgroup * COLUMNS + at % COLUMNS;
      tile[at / COLUMNS * K_STEP + at % COLUMNS] =
          queries[(kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2] +
                  column * q_strides[3]];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (int d = 0; d < COLUMNS / 8; ++d) {
      simdgroup_load(q[r][d], tile + 8 * d, K_STEP);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (int d = 0; d < V_COLUMNS / 8; ++d) {
      out[r][d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }
  // The row of the two elements that a lane has of a matrix.
  const int own_row = (lane / 4 & 4) + lane / 2 % 4;

  // The weights' side: key thread % KEYS in every row_of(o).
  const int thread_index = simdgroup * 32 + lane;
  const int own_key = thread_index % KEYS;
  float top[OWN];
  float sum[OWN];
  float bias[OWN];  // of the block at hand, read one block ahead
  long mask_row[OWN];
#pragma unroll
  for (int o = 0; o < OWN; ++o) {
    const int row = min(row0 + (o * 32 * MAKERS + thread_index) / KEYS, GROUP * QLEN - 1);
    top[o] = FLOOR;
    sum[o] = 0.0f;
    bias[o] = -INFINITY;
    mask_row[o] = batch * m_strides[0] + (kv_head * GROUP + row / QLEN) * m_strides[1] +
        row % QLEN * m_strides[2];
    const int key = first * KEYS + own_key;
    if (MASK > CAUSAL && simdgroup < MAKERS && key < kv_len) {
      bias[o] = float(mask[mask_row[o] + key * m_strides[3]]);
    }
  }

  Part<T, COLUMNS, KEYS> k;
  Part<T, V_COLUMNS, KEYS> v;
  if (first * KEYS < kv_len) {
    k.read(keys, k_strides, simdgroup * COLUMNS, first * KEYS, kv_len, wide, lane);
    if (!LATENT) {
      v.read(values, v_strides, simdgroup * V_COLUMNS, first * KEYS, kv_len, wide, lane);
    }
  }
  for (int block = first; block * KEYS < kv_len; block += step) {
    const bool more = (block + step) * KEYS < kv_len;
    k.stage(tile, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (more) {
      k.read(keys, k_strides, simdgroup * COLUMNS, (block + step) * KEYS, kv_len, wide, lane);
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
      simdgroup_matrix<float, 8, 8> score[ROWS / 8];
#pragma unroll
      for (int r = 0; r < ROWS / 8; ++r) {
        score[r] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      }
#pragma unroll
      for (int d = 0; d < COLUMNS / 8; ++d) {
        simdgroup_matrix<T, 8, 8> turned;
        simdgroup_load(turned, tile + 8 * n * K_STEP + 8 * d, K_STEP, ulong2(0, 0), true);
#pragma unroll
        for (int r = 0; r < ROWS / 8; ++r) {
          simdgroup_multiply_accumulate(score[r], q[r][d], turned, score[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS / 8; ++r) {
        simdgroup_store(
            score[r],
            partial + (simdgroup * (KEYS / 8) + n) * tile_of_sums<ROWS>() + 64 * r, 8);
      }
    }
    if (!LATENT) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
      v.stage(tile, lane);
      if (more) {
        v.read(values, v_strides, simdgroup * V_COLUMNS, (block + step) * KEYS, kv_len, wide, lane);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (simdgroup < MAKERS) {
      const int key = block * KEYS + own_key;
#pragma unroll
      for (int o = 0; o < OWN; ++o) {
        const int at = o * 32 * MAKERS + thread_index;
        const int row = at / KEYS;
        const bool mine = ROWS * KEYS % (32 * MAKERS) == 0 || row < ROWS;
        float score = 0.0f;
#pragma unroll
        for (int s = 0; s < SIMDGROUPS; ++s) {
          score += mine ? partial[(s * (KEYS / 8) + own_key / 8) * tile_of_sums<ROWS>() +
                                  8 * row + own_key % 8]
                        : 0.0f;
        }
        score *= scale * LOG2E;
        bool seen = key < kv_len;
        if (MASK == CAUSAL) {
          seen = key <= kv_len - QLEN + min(row0 + row, GROUP * QLEN - 1) % QLEN;
        } else if (MASK == ADDITIVE) {
          seen = seen && bias[o] != -INFINITY;
          score = max(fma(bias[o], LOG2E, score), HIDDEN);
        } else if (MASK != NONE) {
          seen = seen && bias[o] > 0.0f;
        }
        score = seen ? score : HIDDEN;
        if (MASK > CAUSAL && key + step * KEYS < kv_len) {
          bias[o] = float(mask[mask_row[o] + (key + step * KEYS) * m_strides[3]]);
        }
        float next = score;
#pragma unroll
        for (int away = KEYS / 2; away > 0; away /= 2) {
          next = max(next, simd_shuffle_xor(next, away));
        }
        next = max(next, top[o]);
        const float fade = fast::exp2(top[o] - next);
        const float weight = fast::exp2(score - next);
        top[o] = next;
        sum[o] = sum[o] * fade + weight;
        if (mine) {
          weights[at] = T(weight);
          if (own_key == 0) {
            fades[row] = fade;
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

#pragma unroll
    for (int r = 0; r < ROWS / 8; ++r) {
      const float fade = fades[8 * r + own_row];
      if (simd_any(fade != 1.0f)) {
#pragma unroll
        for (int d = 0; d < V_COLUMNS / 8; ++d) {
          out[r][d].thread_elements()[0] *= fade;
          out[r][d].thread_elements()[1] *= fade;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
      simdgroup_matrix<T, 8, 8> weight[ROWS / 8];
#pragma unroll
      for (int r = 0; r < ROWS / 8; ++r) {
        simdgroup_load(weight[r], weights + 8 * r * KEYS + 8 * n, KEYS);
      }
#pragma unroll
      for (int d = 0; d < V_COLUMNS / 8; ++d) {
        simdgroup_matrix<T, 8, 8> value;
        simdgroup_load(value, tile + 8 * n * V_STEP + 8 * d, V_STEP);
#pragma unroll
        for (int r = 0; r < ROWS / 8; ++r) {
          simdgroup_multiply_accumulate(out[r][d], weight[r], value, out[r][d]);
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (simdgroup < MAKERS) {
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
#pragma unroll
      for (int away = KEYS / 2; away > 0; away /= 2) {
        sum[o] += simd_shuffle_xor(sum[o], away);
      }
      const int row = (o * 32 * MAKERS + thread_index) / KEYS;
      if (own_key == 0 && row < ROWS) {
        tops[row] = top[o];
        sums[row] = sum[o];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Columns of the output that a simdgroup's tile has room for, of 8 rows in float32.
template <typename T, int COLUMNS, int KEYS>
constexpr int laid_out() {
  return KEYS * staged<T, COLUMNS>() * int(sizeof(T)) >= 32 * COLUMNS ? COLUMNS : COLUMNS / 2;
}

// Lays WIDE columns of 8 rows of the output out in the simdgroup's tile, row by row, from column
// `first` of its part on.
template <int WIDE, int MATRICES>
inline void lay_out(const thread simdgroup_matrix<float, 8, 8> (&out)[MATRICES], int first,
                    threadgroup float* tile) {
  static_assert(WIDE % 8 == 0, "whole matrices");
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int d = 0; d < WIDE / 8; ++d) {
    simdgroup_store(out[first / 8 + d], tile + 8 * d, WIDE);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
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

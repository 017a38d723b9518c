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

// With an array for a mask the keys come in runs of SPAN blocks, interleaved: block b of a run has
// its keys b, b + SPAN, ... So a lane reads SPAN neighbours of its mask row at once.
constant constexpr int SPAN = 4;

template <typename M>
inline float4 four(const device M* from) {
  const vec<M, 4> read = *(const device vec<M, 4>*)from;
  return float4(float(read[0]), float(read[1]), float(read[2]), float(read[3]));
}
inline float4 four(const device bool* from) {
  return float4(*(const device uchar4*)from);
}
template <typename M>
inline float4 four(const constant M* from) {  // a mask of a few elements
  return float4(float(from[0]), float(from[1]), float(from[2]), float(from[3]));
}

// The masks of SPAN keys from `key` on, -infinity beyond the keys: at once where the mask's row is
// dense and aligned.
template <typename Mask>
inline float4 read_mask(Mask mask, long row, long step, int key, int kv_len) {
  float4 bias = float4(-INFINITY);
  const Mask from = mask + row + key * step;
  if (step == 1 && key + SPAN <= kv_len &&
      reinterpret_cast<size_t>(from) % (SPAN * sizeof(mask[0])) == 0) {
    bias = four(from);
  } else {
#pragma unroll
    for (int e = 0; e < SPAN; ++e) {
      if (key + e < kv_len) {
        bias[e] = float(mask[row + (key + e) * step]);
      }
    }
  }
  return bias;
}

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
  void read(const device T* rows, Strides strides, int first, int key0, int apart, int kv_len,
            bool wide, int lane) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int at = lane + 32 * i;
      const long key = min(key0 + at / CHUNKS * apart, kv_len - 1);
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

// Attends to the runs of keys first, first + step, ... below kv_len, for ROWS query rows from row0
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
  constexpr int APART = MASK > CAUSAL ? SPAN : 1;  // of the keys of a block
  constexpr int RUN = KEYS * APART;
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
  const bool wide_queries = reinterpret_cast<size_t>(queries) % 16 == 0 &&
      (q_strides[1] | q_strides[2]) % VEC == 0 && q_strides[3] == 1;
  simdgroup_matrix<T, 8, 8> q[ROWS / 8][COLUMNS / 8];
#pragma unroll
  for (int r = 0; r < ROWS / 8; ++r) {
    for (int at = lane; at < 8 * (COLUMNS / VEC); at += 32) {
      const int row = min(row0 + 8 * r + at / (COLUMNS / VEC), GROUP * QLEN - 1);
      const int column = at % (COLUMNS / VEC) * VEC;
      *(threadgroup uint4*)(tile + at / (COLUMNS / VEC) * K_STEP + column) = read_chunk(
          queries + (kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2],
          simdgroup * COLUMNS + column, wide_queries ? 1 : q_strides[3], wide_queries);
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
  float4 bias[OWN];  // of the blocks of a run still to come, read one run ahead
  long mask_row[OWN];
#pragma unroll
  for (int o = 0; o < OWN; ++o) {
    const int row = min(row0 + (o * 32 * MAKERS + thread_index) / KEYS, GROUP * QLEN - 1);
    top[o] = FLOOR;
    sum[o] = 0.0f;
    bias[o] = float4(-INFINITY);
    mask_row[o] = batch * m_strides[0] + (kv_head * GROUP + row / QLEN) * m_strides[1] +
        row % QLEN * m_strides[2];
    if (MASK > CAUSAL && simdgroup < MAKERS) {
      bias[o] = read_mask(mask, mask_row[o], m_strides[3], first * RUN + own_key * SPAN, kv_len);
    }
  }

  Part<T, COLUMNS, KEYS> k;
  Part<T, V_COLUMNS, KEYS> v;
  if (first * RUN < kv_len) {
    k.read(keys, k_strides, simdgroup * COLUMNS, first * RUN, APART, kv_len, wide, lane);
    if (!LATENT) {
      v.read(values, v_strides, simdgroup * V_COLUMNS, first * RUN, APART, kv_len, wide, lane);
    }
  }
  // key0: the first key of the block at hand.
  int key0 = first * RUN;
  while (key0 < kv_len) {
    const bool last = key0 % APART == APART - 1;  // block of its run
    const int next0 = last ? (key0 / RUN + step) * RUN : key0 + 1;
    const bool more = next0 < kv_len;
    k.stage(tile, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (more) {
      k.read(keys, k_strides, simdgroup * COLUMNS, next0, APART, kv_len, wide, lane);
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
        v.read(values, v_strides, simdgroup * V_COLUMNS, next0, APART, kv_len, wide, lane);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (simdgroup < MAKERS) {
      const int key = key0 + own_key * APART;
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
          seen = seen && bias[o][0] != -INFINITY;
          score = max(fma(bias[o][0], LOG2E, score), HIDDEN);
        } else if (MASK != NONE) {
          seen = seen && bias[o][0] > 0.0f;
        }
        score = seen ? score : HIDDEN;
        if (MASK > CAUSAL) {
          bias[o] = float4(bias[o].yzw, -INFINITY);
          if (last) {
            bias[o] = read_mask(mask, mask_row[o], m_strides[3], next0 + own_key * SPAN, kv_len);
          }
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
    key0 = next0;
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

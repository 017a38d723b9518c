// Grouped-query decode attention on tensor cores (mma.sync, sm_80 and later): the shared part.
//
// A warp takes 16 keys at a time, straight from device memory into the registers that the tensor
// cores read: no shared memory, no shuffles of keys or values, 16 bytes a load. Which element a
// lane must hold depends on the order of the summed index, and that order is free. With g = lane /
// 4 and c = lane % 4:
//   scores [row, key] = Q K^T: a lane holds elements 32 j + 8 c to + 7 of key g and of row g
//   output [column, row] = V^T P^T: a lane holds columns 64 h + 8 g to + 7 of keys 2 c, 2 c + 1,
//   2 c + 8 and 2 c + 9, and of P what the scores left in its registers, rounded
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

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pack(float a, float b, __nv_bfloat16) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&pair);
}

__device__ inline uint32_t pack(float a, float b, __half) {
  __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// WORDS registers (two elements each) of a row whose elements lie `step` apart, from element
// `first` on: at once where the row is dense and aligned.
template <int WORDS, typename T>
__device__ inline void read_words(
    uint32_t* to, const T* row, int first, int64_t step, bool wide) {
  if (wide) {
    const T* from = row + first;
    if constexpr (WORDS == 4) {
      const uint4 w = __ldg(reinterpret_cast<const uint4*>(from));
      to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
    } else if constexpr (WORDS == 2) {
      const uint2 w = __ldg(reinterpret_cast<const uint2*>(from));
      to[0] = w.x, to[1] = w.y;
    } else {
      to[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    }
  } else {
    // Rare, and volatile so that the compiler keeps no more than a word's loads in flight: the
    // registers belong to the other branch.
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      asm volatile("{.reg .b16 a, b;\n ld.global.b16 a, [%1];\n ld.global.b16 b, [%2];\n"
                   "mov.b32 %0, {a, b};}"
                   : "=r"(to[i])
                   : "l"(row + (first + 2 * i) * step), "l"(row + (first + 2 * i + 1) * step));
    }
  }
}

// A row of D elements as one lane of four sees it: 16 bytes of every 64, then 8 of a last 32.
template <int D, typename T>
__device__ inline void read_row(
    uint32_t (&to)[D / 8], const T* row, int64_t step, int c, bool wide) {
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    read_words<4>(to + 4 * j, row, 32 * j + 8 * c, step, wide);
  }
  if constexpr (D % 32) {
    read_words<2>(to + D / 32 * 4, row, D / 32 * 32 + 4 * c, step, wide);
  }
}

// The same as one lane of eight sees it: 16 bytes of every 128, then 8 of 64, then 4 of 32.
template <int DV, typename T>
__device__ inline void read_columns(
    uint32_t (&to)[DV / 16], const T* row, int64_t step, int g, bool wide) {
#pragma unroll
  for (int h = 0; h < DV / 64; ++h) {
    read_words<4>(to + 4 * h, row, 64 * h + 8 * g, step, wide);
  }
  if constexpr (DV % 64 >= 32) {
    read_words<2>(to + DV / 64 * 4, row, DV / 64 * 64 + 4 * g, step, wide);
  }
  if constexpr (DV % 32) {
    read_words<1>(to + DV / 32 * 2, row, DV / 32 * 32 + 2 * g, step, wide);
  }
}

// The first of the two columns that word i of read_columns holds.
template <int DV>
__device__ inline int column_of(int i, int g) {
  if (i < DV / 64 * 4) return i / 4 * 64 + 8 * g + i % 4 * 2;
  if (DV % 64 >= 32 && i < DV / 32 * 2) return DV / 64 * 64 + 4 * g + (i - DV / 64 * 4) * 2;
  return DV / 32 * 32 + 2 * g;
}

// What a lane knows of its rows: row 8 t + g for top and sum, rows 8 t + 2 c and + 1 for out.
template <int DV, int TILES>
struct Accumulator {
  float top[TILES];
  float sum[TILES];
  float out[TILES][DV / 16][4];
};

// Attends to the 16-key tiles first, first + step, ... for the rows from row0 on of one KV head.
// Row i stands for query head i / QLEN of the group and query position i % QLEN.
template <typename T, int D, int DV, int GROUP, int QLEN, int MASK, int TILES, typename Mask>
__device__ inline void attend(Accumulator<DV, TILES>& state, const T* queries,
                              const Strides& q_strides, const T* keys, const Strides& k_strides,
                              const T* values, const Strides& v_strides, const Mask* mask,
                              const Strides& m_strides, float scale, int kv_len, int batch,
                              int kv_head, int row0, int first, int step, int lane) {
  constexpr int ROWS = GROUP * QLEN;
  constexpr int HELD = ROWS < 8 * TILES ? ROWS : 8 * TILES;  // rows that exist in this warp
  constexpr int PAIRS = (HELD + 1) / 2;
  constexpr unsigned ALL = 0xffffffffu;
  static_assert(D % 16 == 0 && DV % 16 == 0 && sizeof(T) == 2 && TILES <= 2, "shape not carried");
  const int g = lane / 4;
  const int c = lane % 4;
  const float scale2 = scale * BASE2;
  queries += batch * q_strides[0];
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  const int64_t k_step = k_strides[2];
  const int64_t v_step = v_strides[2];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_step | v_step) % 8 == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  // Rows beyond the last one repeat it, and are never written. Long rows leave too few registers:
  // the queries then lie in shared memory, the same for all warps.
  constexpr bool SHARED = D > 128;
  __shared__ uint2 q_shared[SHARED ? TILES * D / 16 * 32 : 1];
  uint32_t q[TILES][D / 8];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int row = min(row0 + 8 * t + g, ROWS - 1);
    const T* query =
        queries + (kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2];
    if (!SHARED || threadIdx.x < 32) {
      read_row<D>(
          q[t], query, q_strides[3], c,
          reinterpret_cast<size_t>(query) % 16 == 0 && q_strides[3] == 1);
    }
    if (SHARED && threadIdx.x < 32) {
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        q_shared[(t * D / 16 + i) * 32 + lane] = make_uint2(q[t][2 * i], q[t][2 * i + 1]);
      }
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
  uint32_t k[2][D / 8];
  float bias[TILES][4];
  auto read_keys = [&](int tile) {
    if (tile * 16 >= kv_len) {
      return;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = min(tile * 16 + 8 * n + g, kv_len - 1);
      read_row<D>(k[n], keys + key * k_step, k_strides[3], c, wide);
    }
    if constexpr (MASK == ADDITIVE_MASK) {
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const int row = min(row0 + 8 * t + g, ROWS - 1);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = min(tile * 16 + e / 2 * 8 + 2 * c + e % 2, kv_len - 1);
          bias[t][e] = float(mask[batch * m_strides[0] +
                                  (kv_head * GROUP + row / QLEN) * m_strides[1] +
                                  row % QLEN * m_strides[2] + key * m_strides[3]]);
        }
      }
    }
  };

  read_mask(first);
  int tile = find(first);
  read_keys(tile);
  if (SHARED) {
    __syncthreads();
  }
  while (tile * 16 < kv_len) {
    uint32_t v[4][DV / 16];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int key = min(tile * 16 + n / 2 * 8 + 2 * c + n % 2, kv_len - 1);
      read_columns<DV>(v[n], values + key * v_step, v_strides[3], g, wide);
    }

    float score[TILES][4];  // of row 8 t + g: keys 2 c, 2 c + 1, 2 c + 8, 2 c + 9
    {
      float raw[2][4] = {};
#pragma unroll
      for (int i = 0; i < D / 8; i += 2) {
        uint2 low = make_uint2(q[0][i], q[0][i + 1]);
        uint2 high = make_uint2(0, 0);  // rows 8 to 15 of the operand
        if (TILES == 2) {
          high = make_uint2(q[TILES - 1][i], q[TILES - 1][i + 1]);
        }
        if (SHARED) {
          low = q_shared[i / 2 * 32 + lane];
          high = TILES == 2 ? q_shared[(D / 16 + i / 2) * 32 + lane] : high;
        }
        const uint32_t a[4] = {low.x, high.x, low.y, high.y};
        multiply(raw[0], a, k[0][i], k[0][i + 1], T());
        multiply(raw[1], a, k[1][i], k[1][i + 1], T());
      }
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[t][e] = raw[e / 2][2 * t + e % 2] * scale2;
          if constexpr (MASK == ADDITIVE_MASK) {
            score[t][e] = fmaxf(fmaf(bias[t][e], BASE2, score[t][e]), HIDDEN_SCORE);
          }
          const int at = e / 2 * 8 + 2 * c + e % 2;
          score[t][e] = seen[t] >> at & 1u ? score[t][e] : HIDDEN_SCORE;
        }
      }
    }

    tile = find(tile + step);
    read_keys(tile);

    uint32_t p[TILES][2];
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
      p[t][0] = pack(score[t][0], score[t][1], T());
      p[t][1] = pack(score[t][2], score[t][3], T());
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
      }
    }
#pragma unroll
    for (int i = 0; i < DV / 16; ++i) {
      const uint32_t a[4] = {
          __byte_perm(v[0][i], v[1][i], 0x5410), __byte_perm(v[0][i], v[1][i], 0x7632),
          __byte_perm(v[2][i], v[3][i], 0x5410), __byte_perm(v[2][i], v[3][i], 0x7632)};
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        multiply(state.out[t][i], a, p[t][0], p[t][1], T());
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    state.sum[t] += __shfl_xor_sync(ALL, state.sum[t], 1);
    state.sum[t] += __shfl_xor_sync(ALL, state.sum[t], 2);
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
template <int MASK, typename T, typename Mask>
__device__ inline float blind_row(const T* values, int64_t value_stride, const Mask* mask,
                                  int64_t mask_stride, int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = fmaxf(top, MASK == ADDITIVE_MASK ? float(mask[key * mask_stride]) : 0.0f);
  }
  float sum = 0.0f;
  float count = 0.0f;
  for (int key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE_MASK || float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

// The row's final value in one column: the sink takes weight and gives no value.
template <int MASK, bool SINKS, typename T, typename Mask>
__device__ inline float settle(float out, float top, float sum, const T* sinks, int head,
                               const T* values, int64_t value_stride, const Mask* mask,
                               int64_t mask_stride, int kv_len) {
  if (SINKS) {
    const float sink = float(sinks[SINKS ? head : 0]) * BASE2;
    const float all = fmaxf(top, sink);
    out *= power2(top - all);
    sum = sum * power2(top - all) + power2(sink - all);
  }
  return sum == 0.0f ? blind_row<MASK>(values, value_stride, mask, mask_stride, kv_len) : out / sum;
}

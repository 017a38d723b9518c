// Decode attention for wide rows on tensor cores (mma.sync, sm_80 and later): the shared part.
//
// A block takes 16 keys at a time for 16 TILES query rows of one KV head. Its warps share the
// columns: each reads its own part of every key and value row, straight from device memory into
// the registers that the tensor cores read, and holds the same part of the queries and the output.
//   scores: every warp's columns give a partial sum; the sums meet in shared memory, where 16 lanes
//   a row make the weights of an online softmax, once for all warps
//   output: every warp multiplies the weights with its own columns
// A lane (g = lane / 4, c = lane % 4) reads elements 32 j + 8 c to + 7 of key g: as the summed
// index of the scores their order is free. For the output 8x8 tiles are turned between registers;
// where the values are the keys (LATENT) these are the same registers: a row is read once.
//
// Scores are in base 2. A key that a row must not see scores HIDDEN_SCORE; a running maximum starts
// at LOWEST_TOP, below any real score and far above it: no infinity ever enters the arithmetic.
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
constexpr int BOOL_MASK = 2;
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

// An 8x8 tile of 16-bit elements, row g in the lanes 4 g to 4 g + 3, as its transpose.
__device__ inline uint32_t turn(uint32_t tile) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(tile));
  return turned;
}

template <typename T>
__device__ inline uint32_t bits(T a, T b) {
  static_assert(sizeof(T) == 2, "two elements a register");
  return *reinterpret_cast<uint16_t*>(&a) | uint32_t(*reinterpret_cast<uint16_t*>(&b)) << 16;
}

// Elements first + 32 j + 8 c to + 7 of a row whose elements lie `step` apart: 16 bytes at once
// where the row is dense and aligned.
template <int COLUMNS, typename T>
__device__ inline void read_row(uint32_t (&to)[COLUMNS / 8], const T* row, int first, int64_t step,
                                bool wide) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 32; ++j) {
    if (wide) {
      const uint4 w = __ldg(reinterpret_cast<const uint4*>(row + first + 32 * j));
      to[4 * j] = w.x, to[4 * j + 1] = w.y, to[4 * j + 2] = w.z, to[4 * j + 3] = w.w;
    } else {
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const T* from = row + (first + 32 * j + 2 * i) * step;
        const uint32_t word = bits(from[0], from[step]);
        to[4 * j] = i == 0 ? word : to[4 * j];
        to[4 * j + 1] = i == 1 ? word : to[4 * j + 1];
        to[4 * j + 2] = i == 2 ? word : to[4 * j + 2];
        to[4 * j + 3] = i == 3 ? word : to[4 * j + 3];
      }
    }
  }
}

// What the warps of a block share. Row r, key k of a warp's partial sums is at sums_at(r, k); a row
// of weights takes 24 elements: neither meets the same bank twice. Where the partial sums were lies
// later what each of SPLITS blocks counts in a row.
template <typename T, int TILES, int WARPS, int SPLITS>
struct Shared {
  float partial[TILES * (WARPS * 256 > 16 * SPLITS ? WARPS * 256 : 16 * SPLITS)];
  T weights[TILES * 16][24];
  float fade[TILES * 16];
  float top[TILES * 16];
  float sum[TILES * 16];
};

__device__ inline int sums_at(int row, int key) { return row * 16 + (key ^ (row >> 1 & 1) * 8); }

// One lane's part of the output: of rows 16 t + g and + 8 the columns 32 j + 8 c to + 7 of its
// warp's.
template <int COLUMNS, int TILES>
struct Accumulator {
  float out[TILES][COLUMNS / 8][4];
};

// Attends to the 16-key tiles first, first + step, ... for the rows from row0 on of one KV head, on
// D / WARPS columns a warp. Row i stands for query head i / QLEN of the group and query position
// i % QLEN. Afterwards `shared` has top and sum of every row.
template <typename T, int D, int DV, int GROUP, int QLEN, int MASK, int TILES, int WARPS,
          bool LATENT, int SPLITS, typename Mask>
__device__ inline void attend(Accumulator<DV / WARPS, TILES>& state,
                              Shared<T, TILES, WARPS, SPLITS>& shared, const T* queries,
                              const Strides& q_strides, const T* keys, const Strides& k_strides,
                              const T* values, const Strides& v_strides, const Mask* mask,
                              const Strides& m_strides, float scale, int kv_len, int batch,
                              int kv_head, int row0, int first, int step, int warp, int lane) {
  constexpr int ROWS = GROUP * QLEN;
  constexpr int COLUMNS = D / WARPS;
  constexpr int V_COLUMNS = DV / WARPS;
  // So many warps make the weights; a lane of them has one key in OWN rows.
  constexpr int MAKERS = WARPS >= 8 ? 8 : WARPS >= 4 ? 4 : WARPS >= 2 ? 2 : 1;
  constexpr int OWN = TILES * 8 / MAKERS;
  constexpr unsigned ALL = 0xffffffffu;
  static_assert(D % (32 * WARPS) == 0 && DV % (32 * WARPS) == 0 && sizeof(T) == 2 &&
                (!LATENT || D == DV) && OWN > 0, "shape not carried");
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

  // Rows beyond the last one repeat it, and are never written.
  uint32_t q[TILES][2][COLUMNS / 8];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = min(row0 + 16 * t + 8 * h + g, ROWS - 1);
      const T* query =
          queries + (kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2];
      read_row<COLUMNS>(q[t][h], query, warp * COLUMNS + 8 * c, q_strides[3],
                        reinterpret_cast<size_t>(query) % 16 == 0 && q_strides[3] == 1);
    }
#pragma unroll
    for (int i = 0; i < V_COLUMNS / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state.out[t][i][e] = 0.0f;
      }
    }
  }

  // The weights' side: key thread % 16 in rows row_of(o).
  const int thread = warp * 32 + lane;
  const auto row_of = [&](int o) { return o * 2 * MAKERS + thread / 16; };
  float top[OWN];
  float sum[OWN];
  float bias[OWN];  // of the tile at hand, read one tile ahead
  int mask_row[OWN];
#pragma unroll
  for (int o = 0; o < OWN; ++o) {
    const int row = min(row0 + row_of(o), ROWS - 1);
    top[o] = LOWEST_TOP;
    sum[o] = 0.0f;
    mask_row[o] = row / QLEN * int(m_strides[1]) + row % QLEN * int(m_strides[2]);
  }
  mask += batch * m_strides[0] + kv_head * GROUP * m_strides[1];
  const auto read_mask = [&](int tile) {
    if constexpr (MASK >= BOOL_MASK) {
      const int key = tile * 16 + thread % 16;
      if (warp < MAKERS && key < kv_len) {
#pragma unroll
        for (int o = 0; o < OWN; ++o) {
          bias[o] = float(mask[mask_row[o] + key * m_strides[3]]);
        }
      }
    }
  };
  uint32_t k[2][COLUMNS / 8];
  uint32_t v[2][V_COLUMNS / 8];
  const auto read_keys = [&](int tile) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = min(tile * 16 + 8 * n + g, kv_len - 1);
      read_row<COLUMNS>(k[n], keys + key * k_step, warp * COLUMNS + 8 * c, k_strides[3], wide);
    }
  };
  const auto read_values = [&](int tile) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = min(tile * 16 + 8 * n + g, kv_len - 1);
      read_row<V_COLUMNS>(
          v[n], values + key * v_step, warp * V_COLUMNS + 8 * c, v_strides[3], wide);
    }
  };
  const auto turn_into_values = [&](const uint32_t (&from)[2][V_COLUMNS / 8]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < V_COLUMNS / 8; ++i) {
        v[n][i] = turn(from[n][i]);
      }
    }
  };

  if (first * 16 < kv_len) {
    read_mask(first);
    read_keys(first);
    if constexpr (!LATENT) {
      read_values(first);
    }
  }
#pragma unroll 1
  for (int tile = first; tile * 16 < kv_len; tile += step) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      float raw[2][4] = {};
#pragma unroll
      for (int i = 0; i < COLUMNS / 8; i += 2) {
        const uint32_t a[4] = {q[t][0][i], q[t][1][i], q[t][0][i + 1], q[t][1][i + 1]};
        multiply(raw[0], a, k[0][i], k[0][i + 1], T());
        multiply(raw[1], a, k[1][i], k[1][i + 1], T());
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(
              &shared.partial[warp * TILES * 256 + sums_at(16 * t + 8 * h + g, 8 * n + 2 * c)]) =
              make_float2(raw[n][2 * h], raw[n][2 * h + 1]);
        }
      }
    }
    if constexpr (LATENT) {
      turn_into_values(k);
    }
    const bool more = (tile + step) * 16 < kv_len;
    if (more) {
      read_keys(tile + step);
    }
    __syncthreads();

    if (warp < MAKERS) {
      const int key = tile * 16 + thread % 16;
      float score[OWN];
#pragma unroll
      for (int o = 0; o < OWN; ++o) {
        const int row = row_of(o);
        float x = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
          x += shared.partial[w * TILES * 256 + sums_at(row, thread % 16)];
        }
        x *= scale2;
        bool seen = key < kv_len;
        if constexpr (MASK == CAUSAL_MASK) {
          seen = key <= kv_len - QLEN + min(row0 + row, ROWS - 1) % QLEN;
        } else if constexpr (MASK == BOOL_MASK) {
          seen = seen && bias[o] > 0.0f;
        } else if constexpr (MASK == ADDITIVE_MASK) {
          seen = seen && bias[o] != -INFINITY;
          x = fmaxf(fmaf(bias[o], BASE2, x), HIDDEN_SCORE);
        }
        score[o] = seen ? x : HIDDEN_SCORE;
      }
      if (more) {
        read_mask(tile + step);
      }
#pragma unroll
      for (int o = 0; o < OWN; ++o) {
        float next = score[o];
#pragma unroll
        for (int away = 8; away > 0; away /= 2) {
          next = fmaxf(next, __shfl_xor_sync(ALL, next, away));
        }
        next = fmaxf(next, top[o]);
        const float fade = power2(top[o] - next);
        const float weight = power2(score[o] - next);
        top[o] = next;
        sum[o] = sum[o] * fade + weight;
        shared.weights[row_of(o)][thread % 16] = T(weight);
        if (thread % 16 == 0) {
          shared.fade[row_of(o)] = fade;
        }
      }
    }
    __syncthreads();

    if constexpr (!LATENT) {
      turn_into_values(v);
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const float fade0 = shared.fade[16 * t + g];
      const float fade1 = shared.fade[16 * t + 8 + g];
      if (__any_sync(ALL, fade0 != 1.0f || fade1 != 1.0f)) {
#pragma unroll
        for (int i = 0; i < V_COLUMNS / 8; ++i) {
          state.out[t][i][0] *= fade0;
          state.out[t][i][1] *= fade0;
          state.out[t][i][2] *= fade1;
          state.out[t][i][3] *= fade1;
        }
      }
      const auto weights = [&](int row, int key) {
        return *reinterpret_cast<const uint32_t*>(&shared.weights[16 * t + row][key]);
      };
      const uint32_t p[4] = {weights(g, 2 * c), weights(g + 8, 2 * c), weights(g, 2 * c + 8),
                             weights(g + 8, 2 * c + 8)};
#pragma unroll
      for (int i = 0; i < V_COLUMNS / 8; ++i) {
        multiply(state.out[t][i], p, v[0][i], v[1][i], T());
      }
    }
    if constexpr (!LATENT) {
      if (more) {
        read_values(tile + step);
      }
    }
  }
  if (warp < MAKERS) {
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
#pragma unroll
      for (int away = 8; away > 0; away /= 2) {
        sum[o] += __shfl_xor_sync(ALL, sum[o], away);
      }
      if (thread % 16 == 0) {
        shared.top[row_of(o)] = top[o];
        shared.sum[row_of(o)] = sum[o];
      }
    }
  }
  __syncthreads();
}

// For every row of this lane `write` gets the row (from 0), the first of 8 columns and their
// values.
template <int COLUMNS, int TILES, typename Write>
__device__ inline void each_octet(const Accumulator<COLUMNS, TILES>& state, int warp, int lane,
                                  Write write) {
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 32; ++j) {
        float octet[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          octet[e] = state.out[t][4 * j + e / 2][2 * h + e % 2];
        }
        write(16 * t + 8 * h + lane / 4, warp * COLUMNS + 32 * j + lane % 4 * 8, octet);
      }
    }
  }
}

// A row that sees no key at all has equal weights on the keys with the largest mask value (on all
// of them under a bool or causal mask); where every value is -infinity it is NaN. Rare.
template <int MASK, typename T, typename Mask>
__device__ inline float blind_row(const T* values, int64_t value_stride, const Mask* mask,
                                  int64_t mask_stride, int kv_len) {
  float top = -INFINITY;
#pragma unroll 1
  for (int key = 0; key < kv_len; ++key) {
    top = fmaxf(top, MASK == ADDITIVE_MASK ? float(mask[key * mask_stride]) : 0.0f);
  }
  float sum = 0.0f;
  float count = 0.0f;
#pragma unroll 1
  for (int key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE_MASK || float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

// What a row's weighted sums are to be multiplied with: the sink takes weight and gives no value.
// Negative where the row sees nothing at all.
template <bool SINKS, typename T>
__device__ inline float share(float top, float sum, const T* sinks, int head) {
  float own = 1.0f;
  if (SINKS) {
    const float sink = float(sinks[SINKS ? head : 0]) * BASE2;
    const float all = fmaxf(top, sink);
    own = power2(top - all);
    sum = sum * own + power2(sink - all);
  }
  return sum == 0.0f ? -1.0f : own / sum;
}

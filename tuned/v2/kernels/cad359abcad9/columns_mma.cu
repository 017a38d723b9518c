// Decode attention for wide rows on tensor cores (mma.sync, sm_80 and later): the shared part.
//
// A block takes KEYS keys at a time for 16 TILES query rows of one KV head. Its warps share the
// columns: each reads its own part of every key and value row, straight from device memory into
// the registers that the tensor cores read, and holds the same part of the queries and the output.
//   scores: every warp's columns give a partial sum; the sums meet in shared memory, where 16 lanes
//   a row make the weights of an online softmax, once for all warps
//   output: every warp multiplies the weights with its own columns
// A lane (g = lane / 4, c = lane % 4) reads elements 32 j + 8 c to + 7 of key g: as the summed
// index of the scores their order is free. For the output 8x8 tiles are turned between registers;
// where the values are the keys (LATENT) these are the same registers: a row is read once.
// A step is mostly a wait, for memory and at two barriers: many KEYS make few steps.
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

// Between this block's writes and what tells others of them, and between hearing it and reading.
__device__ inline void publish() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

__device__ inline unsigned long long look(const unsigned long long* at) {
  unsigned long long there;
  asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(there) : "l"(at) : "memory");
  return there;
}

__device__ inline unsigned processors() {
  unsigned number;
  asm("mov.u32 %0, %%nsmid;" : "=r"(number));
  return number;
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

// Elements first + 32 j + 8 c to + 7 of rows whose elements lie `step` apart, row(n) for to[n]: 16
// bytes at once where all rows are dense and aligned.
template <int ROWS, int COLUMNS, typename Row>
__device__ inline void read_rows(uint32_t (&to)[ROWS][COLUMNS], Row row, int first, int64_t step,
                                 bool wide) {
  if (wide) {
#pragma unroll
    for (int n = 0; n < ROWS; ++n) {
      const auto* from = row(n) + first;
#pragma unroll
      for (int j = 0; j < COLUMNS; j += 4) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(from + 8 * j));
        to[n][j] = w.x, to[n][j + 1] = w.y, to[n][j + 2] = w.z, to[n][j + 3] = w.w;
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < ROWS; ++n) {
#pragma unroll
    for (int j = 0; j < COLUMNS; j += 4) {
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const auto* from = row(n) + (first + 8 * j + 2 * i) * step;
        const uint32_t word = bits(from[0], from[step]);
        to[n][j] = i == 0 ? word : to[n][j];
        to[n][j + 1] = i == 1 ? word : to[n][j + 1];
        to[n][j + 2] = i == 2 ? word : to[n][j + 2];
        to[n][j + 3] = i == 3 ? word : to[n][j + 3];
      }
    }
  }
}

// What the warps of a block share. Row r, key k of a warp's partial sums is at sums_at(r, k); a row
// of weights takes 8 elements more than KEYS: neither meets the same bank twice.
template <typename T, int TILES, int WARPS, int KEYS>
struct Shared {
  float partial[TILES * 16 * WARPS * KEYS];
  T weights[TILES * 16][KEYS + 8];
  float fade[TILES * 16];
  float top[TILES * 16];
  float sum[TILES * 16];
};

template <int KEYS>
__device__ inline int sums_at(int row, int key) {
  return row * KEYS + (key ^ (KEYS == 16 ? row >> 1 & 1 : row & 3) * 8);
}

// A mask's element as it comes from memory: where it became a float it would be waited for.
template <typename Mask>
struct Unread {
  using Type = Mask;
};
template <>
struct Unread<bool> {
  using Type = unsigned char;
};

// One lane's part of the output: of rows 16 t + g and + 8 the columns 32 j + 8 c to + 7 of its
// warp's.
template <int COLUMNS, int TILES>
struct Accumulator {
  float out[TILES][COLUMNS / 8][4];
};

// Attends to the tiles of KEYS keys first, first + step, ... for the rows from row0 on of one KV
// head, on D / WARPS columns a warp. Row i stands for query head i / QLEN of the group and query
// position i % QLEN. Afterwards `shared` has top and sum of every row.
template <typename T, int D, int DV, int GROUP, int QLEN, int MASK, int TILES, int WARPS,
          int KEYS, bool LATENT, typename Mask>
__device__ inline void attend(Accumulator<DV / WARPS, TILES>& state,
                              Shared<T, TILES, WARPS, KEYS>& shared, const T* queries,
                              const Strides& q_strides, const T* keys, const Strides& k_strides,
                              const T* values, const Strides& v_strides, const Mask* mask,
                              const Strides& m_strides, float scale, int kv_len, int batch,
                              int kv_head, int row0, int first, int step, int warp, int lane) {
  constexpr int ROWS = GROUP * QLEN;
  constexpr int COLUMNS = D / WARPS;
  constexpr int V_COLUMNS = DV / WARPS;
  // So many warps make the weights; a lane of them has NEAR adjacent keys in OWN rows.
  constexpr int MAKERS = WARPS >= 8 ? 8 : WARPS >= 4 ? 4 : WARPS >= 2 ? 2 : 1;
  constexpr int OWN = TILES * 8 / MAKERS;
  constexpr int NEAR = KEYS / 16;
  constexpr unsigned ALL = 0xffffffffu;
  static_assert(D % (32 * WARPS) == 0 && DV % (32 * WARPS) == 0 && sizeof(T) == 2 &&
                (!LATENT || D == DV) && OWN > 0 &&
                (NEAR == 1 || NEAR == 2 || NEAR == 4), "shape not carried");
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
  const bool wide_queries = reinterpret_cast<size_t>(queries) % 16 == 0 &&
                            (q_strides[1] | q_strides[2]) % 8 == 0 && q_strides[3] == 1;

  uint32_t k[KEYS / 8][COLUMNS / 8];
  uint32_t v[KEYS / 8][V_COLUMNS / 8];
  const auto read_keys = [&](int tile) {
    const auto row = [&](int n) {
      return keys + min(tile * KEYS + 8 * n + g, kv_len - 1) * k_step;
    };
    read_rows(k, row, warp * COLUMNS + 8 * c, k_strides[3], wide);
  };
  const auto read_values = [&](int tile) {
    const auto row = [&](int n) {
      return values + min(tile * KEYS + 8 * n + g, kv_len - 1) * v_step;
    };
    read_rows(v, row, warp * V_COLUMNS + 8 * c, v_strides[3], wide);
  };
  const auto turn_into_values = [&](const uint32_t (&from)[KEYS / 8][V_COLUMNS / 8]) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
      for (int i = 0; i < V_COLUMNS / 8; ++i) {
        v[n][i] = turn(from[n][i]);
      }
    }
  };

  // All the first tile's reads are on their way before any is waited for.
  const bool some = first * KEYS < kv_len;
  if (some) {
    read_keys(first);
  }

  // Rows beyond the last one repeat it, and are never written.
  uint32_t q[TILES][2][COLUMNS / 8];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const auto query = [&](int h) {
      const int row = min(row0 + 16 * t + 8 * h + g, ROWS - 1);
      return queries + (kv_head * GROUP + row / QLEN) * q_strides[1] + row % QLEN * q_strides[2];
    };
    read_rows(q[t], query, warp * COLUMNS + 8 * c, q_strides[3], wide_queries);
#pragma unroll
    for (int i = 0; i < V_COLUMNS / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state.out[t][i][e] = 0.0f;
      }
    }
  }

  // The weights' side: keys `near` and following in rows row_of(o).
  const int thread = warp * 32 + lane;
  const int near = thread % 16 * NEAR;
  const auto row_of = [&](int o) { return o * 2 * MAKERS + thread / 16; };
  float top[OWN];
  float sum[OWN];
  using Bias = typename Unread<Mask>::Type;
  Bias bias[OWN][NEAR];  // of the tile at hand, read one tile ahead
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
#pragma unroll
      for (int i = 0; i < NEAR; ++i) {
        const int key = tile * KEYS + near + i;
        if (warp < MAKERS && key < kv_len) {
#pragma unroll
          for (int o = 0; o < OWN; ++o) {
            bias[o][i] = reinterpret_cast<const Bias*>(mask)[mask_row[o] + key * m_strides[3]];
          }
        }
      }
    }
  };
  if (some) {
    read_mask(first);
    if constexpr (!LATENT) {
      read_values(first);
    }
  }
  float* const sums = shared.partial + warp * TILES * 16 * KEYS;
#pragma unroll 1
  for (int tile = first; tile * KEYS < kv_len; tile += step) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      float raw[KEYS / 8][4] = {};
#pragma unroll
      for (int i = 0; i < COLUMNS / 8; i += 2) {
        const uint32_t a[4] = {q[t][0][i], q[t][1][i], q[t][0][i + 1], q[t][1][i + 1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
          multiply(raw[n], a, k[n][i], k[n][i + 1], T());
        }
      }
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(
              sums + sums_at<KEYS>(16 * t + 8 * h + g, 8 * n + 2 * c)) =
              make_float2(raw[n][2 * h], raw[n][2 * h + 1]);
        }
      }
    }
    if constexpr (LATENT) {
      turn_into_values(k);
    }
    const bool more = (tile + step) * KEYS < kv_len;
    if (more) {
      read_keys(tile + step);
    }
    __syncthreads();

    if (warp < MAKERS) {
      float score[OWN][NEAR];
#pragma unroll
      for (int o = 0; o < OWN; ++o) {
        const int row = row_of(o);
        float x[NEAR] = {};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
          struct alignas(4 * NEAR) Sums {
            float of[NEAR];
          };
          const Sums part = *reinterpret_cast<const Sums*>(
              shared.partial + w * TILES * 16 * KEYS + sums_at<KEYS>(row, near));
#pragma unroll
          for (int i = 0; i < NEAR; ++i) {
            x[i] += part.of[i];
          }
        }
#pragma unroll
        for (int i = 0; i < NEAR; ++i) {
          const int key = tile * KEYS + near + i;
          x[i] *= scale2;
          bool seen = key < kv_len;
          if constexpr (MASK == CAUSAL_MASK) {
            seen = key <= kv_len - QLEN + min(row0 + row, ROWS - 1) % QLEN;
          } else if constexpr (MASK == BOOL_MASK) {
            seen = seen && float(bias[o][i]) > 0.0f;
          } else if constexpr (MASK == ADDITIVE_MASK) {
            const float added = float(bias[o][i]);
            seen = seen && added != -INFINITY;
            x[i] = fmaxf(fmaf(added, BASE2, x[i]), HIDDEN_SCORE);
          }
          score[o][i] = seen ? x[i] : HIDDEN_SCORE;
        }
      }
      if (more) {
        read_mask(tile + step);
      }
#pragma unroll
      for (int o = 0; o < OWN; ++o) {
        float next = score[o][0];
#pragma unroll
        for (int i = 1; i < NEAR; ++i) {
          next = fmaxf(next, score[o][i]);
        }
#pragma unroll
        for (int away = 8; away > 0; away /= 2) {
          next = fmaxf(next, __shfl_xor_sync(ALL, next, away));
        }
        next = fmaxf(next, top[o]);
        const float fade = power2(top[o] - next);
        top[o] = next;
        sum[o] *= fade;
        struct alignas(sizeof(T) * NEAR) Weights {
          T of[NEAR];
        } weights;
#pragma unroll
        for (int i = 0; i < NEAR; ++i) {
          const float weight = power2(score[o][i] - next);
          sum[o] += weight;
          weights.of[i] = T(weight);
        }
        *reinterpret_cast<Weights*>(&shared.weights[row_of(o)][near]) = weights;
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
#pragma unroll
      for (int n = 0; n < KEYS / 8; n += 2) {
        const int key = 8 * n + 2 * c;
        const uint32_t p[4] = {weights(g, key), weights(g + 8, key), weights(g, key + 8),
                               weights(g + 8, key + 8)};
#pragma unroll
        for (int i = 0; i < V_COLUMNS / 8; ++i) {
          multiply(state.out[t][i], p, v[n][i], v[n + 1][i], T());
        }
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

// A counter of blocks in memory that nobody has initialised: it counts from START, a pair of NaNs
// that no arithmetic makes, comers by ones and leavers by LEAVERs; what else is found there is old.
//
// A comer is counted once, by the addition or exchange that finds the counter counting:
//   an addition to old content has not counted its comer, who then puts START + 1 in the place of
//   exactly what lies there or, where another was quicker, adds again
//   only the last takes the count away, when no comer is on the way any more: the memory holds no
//   count when it is used again
// So every comer has a number of its own, one comer is the last, and what follows happens once.
// All that happens to a counter in a launch are additions, exchanges and reads: the fences around
// them order every record's writes before the reads of whoever hears of the last.
//
// The last leaves 0: early_start saves the next launch the way over old content. A block calls it
// before it comes.
constexpr unsigned long long START = 0x7fa5c3e1ffb00000ull;
constexpr unsigned LEAVER = 1 << 10;

__device__ inline bool counting(unsigned long long found) {
  return found - START < LEAVER * LEAVER;
}

__device__ inline void early_start(unsigned long long* counter) {
  atomicCAS(counter, 0ull, START);
}

// The comer's number, from 0. Who is the last may read what all wrote before they came.
__device__ inline int come(unsigned long long* counter) {
  publish();
  unsigned long long found = atomicAdd(counter, 1ull);
  if (!counting(found)) {
    unsigned long long there = found + 1;
    bool counted = false;
    while (!counted && !counting(there)) {
      found = atomicCAS(counter, there, START + 1);
      counted = found == there;
      there = found;
    }
    found = counted ? START : atomicAdd(counter, 1ull);
  }
  publish();
  return int(found - START) % int(LEAVER);
}

// For the last: takes the count away. True where nobody left.
__device__ inline bool call_all(unsigned long long* counter) {
  return atomicExch(counter, 0ull) - START < LEAVER;
}

// Whether all blocks of the grid can run at the same time, one on each processor.
__device__ inline bool at_once() {
  return gridDim.x * gridDim.y * gridDim.z <= processors();
}

// Waits for the last's call, but not for ever: something else may run here. Who gives up leaves,
// and the answer is false.
__device__ inline bool hear_call(unsigned long long* counter) {
  constexpr int PATIENCE = 256;  // looks, of some 0.2 us each
#pragma unroll 1
  for (int i = 0; i < PATIENCE; ++i) {
    if (!counting(look(counter))) {
      publish();
      return true;
    }
  }
  const bool left = counting(atomicAdd(counter, (unsigned long long)LEAVER));
  publish();
  return !left;
}

__device__ constexpr int power_of_2(int at_least) {
  int power = 1;
  while (power < at_least) {
    power *= 2;
  }
  return power;
}

// Adds up one of PARTS parts of NUMBER records: HELD rows of DV sums, then top and sum of every
// row. Where a part has fewer fours of columns than the block has threads, several threads take the
// same four from different records. `room` is shared memory that nobody reads any more, 6 floats a
// thread; `write` gets a row, the place of 4 columns among all rows' fours, top, sum, 4 sums.
template <int NUMBER, int PARTS, int RECORD, int HELD, int DV, int WARPS, typename Write>
__device__ inline void add_part(const float* records, int part, int rows, float* room,
                                 Write write) {
  constexpr int THREADS = 16 * power_of_2(WARPS + 1);
  constexpr int FOURS = power_of_2((HELD * DV / 4 + PARTS - 1) / PARTS);
  constexpr int LANES = FOURS < THREADS ? FOURS : THREADS;
  constexpr int SIDES = THREADS / LANES;
  constexpr int EACH = (NUMBER + SIDES - 1) / SIDES;
  constexpr int TOGETHER = EACH < 16 ? EACH : 16;  // records that a thread reads at once
  const int side = threadIdx.x / LANES;
  const int end = min((part + 1) * FOURS, rows * (DV / 4));
#pragma unroll 1
  for (int first = part * FOURS; first < end; first += LANES) {
    const int at = first + int(threadIdx.x) % LANES;
    const bool busy = side < SIDES && at < end;
    float top = LOWEST_TOP;
    float sum = 0.0f;
    float total[4] = {};
    const auto rise = [&](float next) {
      const float fade = power2(top - next);
      top = next;
      sum *= fade;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        total[e] *= fade;
      }
    };
    if (busy) {
#pragma unroll 1
      for (int s0 = side; s0 < NUMBER; s0 += SIDES * TOGETHER) {
        float4 x[TOGETHER];
        float2 own[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
          const float* record = records + int64_t(min(s0 + i * SIDES, NUMBER - 1)) * RECORD;
          own[i] = __ldcg(reinterpret_cast<const float2*>(record + HELD * DV + at / (DV / 4) * 2));
          x[i] = __ldcg(reinterpret_cast<const float4*>(record + 4 * at));
        }
        float next = top;
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
          next = fmaxf(next, own[i].x);
        }
        rise(next);
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
          const float count = s0 + i * SIDES < NUMBER ? power2(own[i].x - top) : 0.0f;
          sum = fmaf(own[i].y, count, sum);
          total[0] = fmaf(x[i].x, count, total[0]);
          total[1] = fmaf(x[i].y, count, total[1]);
          total[2] = fmaf(x[i].z, count, total[2]);
          total[3] = fmaf(x[i].w, count, total[3]);
        }
      }
    }
    if constexpr (SIDES > 1) {
      float* const mine = room + threadIdx.x;
      const auto put = [&]() {
        mine[0] = top;
        mine[THREADS] = sum;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          mine[(2 + e) * THREADS] = total[e];
        }
      };
      if (side < SIDES) {
        put();
      }
#pragma unroll
      for (int half = SIDES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (side < half) {
          const float* const other = mine + half * LANES;
          rise(fmaxf(top, other[0]));
          const float count = power2(other[0] - top);
          sum = fmaf(other[THREADS], count, sum);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            total[e] = fmaf(other[(2 + e) * THREADS], count, total[e]);
          }
          put();
        }
      }
    }
    if (busy && side == 0) {
      write(at / (DV / 4), at, top, sum, total);
    }
  }
}

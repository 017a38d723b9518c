// Attention for many query rows on tensor cores (mma.sync, sm_80 and later): the shared part.
//
// The GROUP query heads of a KV head, position by position, are rows of one matrix: row i stands
// for head i / q_len of the group and query position i % q_len. A block takes 16 ROW_WARPS rows.
// Tiles of KEYS keys and values pass through three slots of shared memory, copied two tiles ahead,
// so that one barrier a tile suffices; KEY_WARPS warps for the same rows share a tile's keys. A
// warp holds its queries and its weighted sums in registers and runs an online softmax in float32.
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
constexpr float HIDING_BIAS = -2.36e38f;  // times BASE2 it is below HIDDEN_SCORE

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

// Four 8x8 tiles of 16-bit elements from shared memory: lane i gives the address of row i % 8 of
// tile i / 8; lane 4 g + c gets elements 2 c and 2 c + 1 of every tile's row g.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same of the transposes: elements 2 c and 2 c + 1 of every tile's column g.
__device__ inline void load_turned(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
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

__device__ inline uint32_t pack(float a, float b, __half) {
  __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&pair);
}

template <typename T>
__device__ inline uint32_t bits(T a, T b) {
  static_assert(sizeof(T) == 2, "two elements a register");
  return *reinterpret_cast<uint16_t*>(&a) | uint32_t(*reinterpret_cast<uint16_t*>(&b)) << 16;
}

// Two neighbouring values of an additive mask's row; 0 for a key that does not exist.
template <typename T>
__device__ inline uint32_t read_pair(const T* row, int64_t step, int key, int kv_len) {
  if (step == 1 && key + 1 < kv_len && reinterpret_cast<size_t>(row + key) % 4 == 0) {
    return __ldg(reinterpret_cast<const uint32_t*>(row + key));
  }
  const T low = key < kv_len ? row[key * step] : T(0.0f);
  const T high = key + 1 < kv_len ? row[(key + 1) * step] : T(0.0f);
  return bits(low, high);
}
template <typename T>
__device__ inline float bias_of(uint32_t pair, int e) {
  const uint16_t word = e ? pair >> 16 : pair & 0xffff;
  return float(*reinterpret_cast<const T*>(&word));
}

// Rows of a tile in shared memory: 16-byte chunks in an order, or with a pitch, that lets eight
// rows be read at one chunk without meeting a bank twice.
template <int WIDTH>
constexpr int pitch_of() { return WIDTH % 64 == 0 ? WIDTH : WIDTH + 8; }
template <int WIDTH>
__device__ inline int place(int row, int chunk) {
  return row * pitch_of<WIDTH>() + (WIDTH % 64 == 0 ? chunk ^ (row & 7) : chunk) * 8;
}

// Copies rows first to first + ROWS - 1 of keys or values, those beyond the last one as the last.
template <typename T, int WIDTH, int ROWS, int THREADS>
__device__ inline void stage(T* to, const T* rows, int64_t row_step, int64_t step, int first,
                             int length, bool wide) {
  constexpr int CHUNKS = WIDTH / 8;
  if (wide) {
#pragma unroll
    for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++i) {
      const int at = threadIdx.x + i * THREADS;
      if (ROWS * CHUNKS % THREADS == 0 || at < ROWS * CHUNKS) {
        const int row = at / CHUNKS;
        copy_async(to + place<WIDTH>(row, at % CHUNKS),
                   rows + min(first + row, length - 1) * row_step + at % CHUNKS * 8);
      }
    }
  } else {
#pragma unroll 1
    for (int at = threadIdx.x; at < ROWS * WIDTH; at += THREADS) {
      const int row = at / WIDTH;
      const int column = at % WIDTH;
      to[place<WIDTH>(row, column / 8) + column % 8] =
          rows[min(first + row, length - 1) * row_step + column * step];
    }
  }
}

// Elements of shared memory that three slots take.
template <int D, int DV, int KEYS>
constexpr int slot_of() {
  return KEYS * (pitch_of<D>() > pitch_of<DV>() ? pitch_of<D>() : pitch_of<DV>());
}

// What a lane knows of its rows g = lane / 4 and g + 8: the latter in top[1], sum[1], out[][2..3].
template <int DV>
struct Accumulator {
  float top[2];
  float sum[2];
  float out[DV / 8][4];
};

// Attends to the tiles split, split + SPLITS, ... for 16 ROW_WARPS rows from row0 on of one KV
// head.
template <typename T, int D, int DV, int GROUP, int MASK, int ROW_WARPS, int KEY_WARPS, int KEYS,
          int SPLITS, typename Mask>
__device__ inline void attend(Accumulator<DV>& state, T* slots, const T* queries,
                              const Strides& q_strides, const T* keys, const Strides& k_strides,
                              const T* values, const Strides& v_strides, const Mask* mask,
                              const Strides& m_strides, float scale, int q_len, int kv_len,
                              int batch, int kv_head, int row0, int split, int warp, int lane) {
  constexpr int THREADS = 32 * ROW_WARPS * KEY_WARPS;
  constexpr int OWN = KEYS / KEY_WARPS;  // keys of a warp in a tile
  constexpr int SLOT = slot_of<D, DV, KEYS>();
  constexpr unsigned ALL = 0xffffffffu;
  static_assert(D % 16 == 0 && DV % 16 == 0 && OWN % 16 == 0 && sizeof(T) == 2,
                "shape not carried");
  const int g = lane / 4;
  const int c = lane % 4;
  const int rows = GROUP * q_len;
  const int key_warp = warp / ROW_WARPS;
  const float scale2 = scale * BASE2;
  queries += batch * q_strides[0] + kv_head * GROUP * q_strides[1];
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  mask += batch * m_strides[0] + kv_head * GROUP * m_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_strides[2] | v_strides[2]) % 8 == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  // How many keys some row of the block may see: what lies beyond is not even copied.
  int end = kv_len;
  if (MASK == CAUSAL_MASK) {
    const int last = min(row0 + 16 * ROW_WARPS, rows) - 1;
    end -= last / q_len == row0 / q_len ? q_len - 1 - last % q_len : 0;
  }
  const int count = ((end + KEYS - 1) / KEYS - split + SPLITS - 1) / SPLITS;  // may be negative
  int staged = 0;
  int slot = 0;
  const auto stage_next = [&]() {
    if (staged < 2 * count) {
      const int first = (split + staged / 2 * SPLITS) * KEYS;
      T* to = slots + slot * SLOT;
      if (staged % 2 == 0) {
        stage<T, D, KEYS, THREADS>(to, keys, k_strides[2], k_strides[3], first, kv_len, wide);
      } else {
        stage<T, DV, KEYS, THREADS>(to, values, v_strides[2], v_strides[3], first, kv_len, wide);
      }
    }
    commit_copies();
    ++staged;
    slot = slot == 2 ? 0 : slot + 1;
  };
  stage_next();
  stage_next();

  // Rows beyond the last one repeat it, and are never written.
  uint32_t q[D / 16][4];
  int seen[2];  // so many keys a row may see
  int64_t mask_row[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = min(row0 + warp % ROW_WARPS * 16 + 8 * h + g, rows - 1);
    const int position = row % q_len;
    const T* query = queries + row / q_len * q_strides[1] + position * q_strides[2];
    const bool paired = reinterpret_cast<size_t>(query) % 4 == 0 && q_strides[3] == 1;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const T* from = query + (8 * i + 2 * c) * q_strides[3];
      q[i / 2][i % 2 * 2 + h] = paired ? __ldg(reinterpret_cast<const uint32_t*>(from))
                                       : bits(from[0], from[q_strides[3]]);
    }
    seen[h] = MASK == CAUSAL_MASK ? kv_len - q_len + position + 1 : kv_len;
    mask_row[h] = row / q_len * m_strides[1] + position * m_strides[2];
    state.top[h] = LOWEST_TOP;
    state.sum[h] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < DV / 8; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      state.out[i][e] = 0.0f;
    }
  }
  int least = min(seen[0], seen[1]);  // of all rows of the warp
  int most = max(seen[0], seen[1]);
  if (MASK == CAUSAL_MASK) {
#pragma unroll
    for (int away = 4; away < 32; away *= 2) {
      least = min(least, __shfl_xor_sync(ALL, least, away));
      most = max(most, __shfl_xor_sync(ALL, most, away));
    }
  }

  // The 16 rows of a warp's mask mostly follow each other.
  const int64_t first_row = __shfl_sync(ALL, mask_row[0], 0);
  const bool one_head = __all_sync(
      ALL, mask_row[0] == first_row + g * m_strides[2] &&
               mask_row[1] == first_row + (g + 8) * m_strides[2]);

  int used = 0;  // the slot at hand
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const int first = (split + n * SPLITS) * KEYS + key_warp * OWN;
    bool busy = first < most;
    // An additive mask comes as the scores lie; of a bool mask a lane reads a key in every row.
    uint32_t pairs[MASK == ADDITIVE_MASK ? OWN / 8 : 1][2];
    bool shown[MASK == BOOL_MASK ? OWN / 2 : 1];
    if constexpr (MASK == ADDITIVE_MASK) {
#pragma unroll
      for (int i = 0; i < OWN / 8; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          pairs[i][h] =
              read_pair(mask + mask_row[h], m_strides[3], first + 8 * i + 2 * c, kv_len);
        }
      }
    } else if constexpr (MASK == BOOL_MASK) {
#pragma unroll
      for (int i = 0; i < OWN / 2; ++i) {
        const int at = 32 * i + lane;
        const int row = OWN == 16 ? 2 * i + lane / 16 : i * 32 / OWN;
        int64_t from = first_row + row * m_strides[2];
        if (!one_head) {
          from = __shfl_sync(ALL, mask_row[OWN == 16 ? i / 4 : row / 8], row % 8 * 4);
        }
        const int key = first + at % OWN;
        shown[i] = key < kv_len && mask[from + key * m_strides[3]];
      }
    }

    wait_copies<1>();
    __syncthreads();
    stage_next();
    uint32_t visible[2][(OWN + 31) / 32];  // of a bool mask, bit by bit
    if constexpr (MASK == ADDITIVE_MASK) {
      bool any = false;
#pragma unroll
      for (int i = 0; i < OWN / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          any = any || (first + 8 * i + 2 * c + e % 2 < kv_len &&
                        bias_of<T>(pairs[i][e / 2], e % 2) > HIDING_BIAS);
        }
      }
      busy = __any_sync(ALL, any);
    } else if constexpr (MASK == BOOL_MASK) {
      uint32_t any = 0;
#pragma unroll
      for (int i = 0; i < OWN / 2; ++i) {
        const uint32_t word = __ballot_sync(ALL, shown[i]);
        any |= word;
        if constexpr (OWN == 16) {
          visible[i / 4][0] = g / 2 == i % 4 ? word >> g % 2 * 16 : visible[i / 4][0];
        } else {
          const int row = i * 32 / OWN;
          visible[row / 8][i % (OWN / 32)] =
              g == row % 8 ? word : visible[row / 8][i % (OWN / 32)];
        }
      }
      busy = any != 0;
    }
    float score[OWN / 8][4] = {};
    if (busy) {
      const T* tile = slots + used * SLOT;
      const int row = key_warp * OWN + lane / 16 * 8 + lane % 8;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int i = 0; i < OWN / 16; ++i) {
          uint32_t b[4];
          load_matrices(b, tile + place<D>(row + 16 * i, 2 * k + lane / 8 % 2));
          multiply(score[2 * i], q[k], b[0], b[1], T());
          multiply(score[2 * i + 1], q[k], b[2], b[3], T());
        }
      }
      const bool whole = MASK <= CAUSAL_MASK && first + OWN <= least;
      float next[2] = {state.top[0], state.top[1]};
#pragma unroll
      for (int i = 0; i < OWN / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = first + 8 * i + 2 * c + e % 2;
          float x = score[i][e] * scale2;
          if constexpr (MASK == BOOL_MASK) {
            x = visible[e / 2][i / 4] >> (8 * i % 32 + 2 * c + e % 2) & 1 ? x : HIDDEN_SCORE;
          } else if constexpr (MASK == ADDITIVE_MASK) {
            const float bias = bias_of<T>(pairs[i][e / 2], e % 2);
            x = key < kv_len && bias > HIDING_BIAS ? fmaf(bias, BASE2, x) : HIDDEN_SCORE;
          } else {
            x = whole || key < seen[e / 2] ? x : HIDDEN_SCORE;
          }
          score[i][e] = x;
          next[e / 2] = fmaxf(next[e / 2], x);
        }
      }
      float fade[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        next[h] = fmaxf(next[h], __shfl_xor_sync(ALL, next[h], 1));
        next[h] = fmaxf(next[h], __shfl_xor_sync(ALL, next[h], 2));
        fade[h] = power2(state.top[h] - next[h]);
        state.top[h] = next[h];
        state.sum[h] *= fade[h];
      }
#pragma unroll
      for (int i = 0; i < OWN / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[i][e] = power2(score[i][e] - next[e / 2]);
          state.sum[e / 2] += score[i][e];
        }
      }
      if (__any_sync(ALL, fade[0] != 1.0f || fade[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < DV / 8; ++i) {
          state.out[i][0] *= fade[0];
          state.out[i][1] *= fade[0];
          state.out[i][2] *= fade[1];
          state.out[i][3] *= fade[1];
        }
      }
    }
    used = used == 2 ? 0 : used + 1;

    wait_copies<1>();
    __syncthreads();
    stage_next();
    if (busy) {
      const T* tile = slots + used * SLOT;
      const int row = key_warp * OWN + lane % 16;
#pragma unroll
      for (int k = 0; k < OWN / 16; ++k) {
        const uint32_t p[4] = {
            pack(score[2 * k][0], score[2 * k][1], T()),
            pack(score[2 * k][2], score[2 * k][3], T()),
            pack(score[2 * k + 1][0], score[2 * k + 1][1], T()),
            pack(score[2 * k + 1][2], score[2 * k + 1][3], T())};
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
          uint32_t b[4];
          load_turned(b, tile + place<DV>(row + 16 * k, 2 * i + lane / 16));
          multiply(state.out[2 * i], p, b[0], b[1], T());
          multiply(state.out[2 * i + 1], p, b[2], b[3], T());
        }
      }
    }
    used = used == 2 ? 0 : used + 1;
  }
  wait_copies<0>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    state.sum[h] += __shfl_xor_sync(ALL, state.sum[h], 1);
    state.sum[h] += __shfl_xor_sync(ALL, state.sum[h], 2);
  }
}

// The KEY_WARPS warps of the same rows become one: its first warp has the result.
template <int DV, int ROW_WARPS, int KEY_WARPS>
__device__ inline void merge(Accumulator<DV>& state, float* shared, int warp, int lane) {
  if constexpr (KEY_WARPS > 1) {
    constexpr int AT_ONCE = 4;  // of the DV / 8 tiles of the output
    const int g = lane / 4;
    const int row_warp = warp % ROW_WARPS;
    const int key_warp = warp / ROW_WARPS;
    __syncthreads();
    if (lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        shared[warp * 32 + 8 * h + g] = state.top[h];
        shared[warp * 32 + 16 + 8 * h + g] = state.sum[h];
      }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float own = state.top[h];
      float top = LOWEST_TOP;
#pragma unroll
      for (int k = 0; k < KEY_WARPS; ++k) {
        top = fmaxf(top, shared[(k * ROW_WARPS + row_warp) * 32 + 8 * h + g]);
      }
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < KEY_WARPS; ++k) {
        const float* other = shared + (k * ROW_WARPS + row_warp) * 32 + 8 * h + g;
        sum += other[16] * power2(other[0] - top);
      }
      state.top[h] = top;
      state.sum[h] = sum;
      const float fade = power2(own - top);
#pragma unroll
      for (int i = 0; i < DV / 8; ++i) {
        state.out[i][2 * h] *= fade;
        state.out[i][2 * h + 1] *= fade;
      }
    }
    // One after another the others' results are added, four tiles at a time.
    float4* const sums = reinterpret_cast<float4*>(shared + ROW_WARPS * KEY_WARPS * 32);
#pragma unroll
    for (int i0 = 0; i0 < DV / 8; i0 += AT_ONCE) {
      if (i0 > 0) {
        __syncthreads();
      }
      if (key_warp > 0) {
#pragma unroll
        for (int i = i0; i < i0 + AT_ONCE && i < DV / 8; ++i) {
          sums[((warp - ROW_WARPS) * AT_ONCE + i - i0) * 32 + lane] =
              make_float4(state.out[i][0], state.out[i][1], state.out[i][2], state.out[i][3]);
        }
      }
      __syncthreads();
      if (key_warp == 0) {
#pragma unroll
        for (int k = 1; k < KEY_WARPS; ++k) {
#pragma unroll
          for (int i = i0; i < i0 + AT_ONCE && i < DV / 8; ++i) {
            const float4 other =
                sums[(((k - 1) * ROW_WARPS + row_warp) * AT_ONCE + i - i0) * 32 + lane];
            state.out[i][0] += other.x;
            state.out[i][1] += other.y;
            state.out[i][2] += other.z;
            state.out[i][3] += other.w;
          }
        }
      }
    }
  }
}

// Bytes of shared memory for the tiles, or for what the warps tell each other afterwards.
template <int D, int DV, int ROW_WARPS, int KEY_WARPS, int KEYS>
constexpr int shared_bytes() {
  constexpr int tiles = 3 * slot_of<D, DV, KEYS>() * 2;
  constexpr int sums = ROW_WARPS * KEY_WARPS * 128 + ROW_WARPS * (KEY_WARPS - 1) * 2048;
  return tiles > sums || KEY_WARPS == 1 ? tiles : sums;
}

// A row that an additive mask hides from every key has equal weights on the keys with the largest
// mask value; where every value is -infinity it is NaN. Rare.
template <int MASK, typename T, typename Mask>
__device__ inline float blind_row(const T* values, int64_t value_stride, const Mask* mask,
                                  int64_t mask_stride, int kv_len) {
  float top = -INFINITY;
#pragma unroll 1
  for (int key = 0; key < kv_len; ++key) {
    top = fmaxf(top, float(mask[key * mask_stride]));
  }
  float sum = 0.0f;
  float count = 0.0f;
#pragma unroll 1
  for (int key = 0; key < kv_len; ++key) {
    if (float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

// What a row's weighted sums are to be multiplied with: the sink takes weight and gives no value.
// A row that sees nothing is zeros; under an additive mask the answer is negative there.
template <int MASK, bool SINKS, typename T>
__device__ inline float share(float top, float sum, const T* sinks, int head) {
  float own = 1.0f;
  if (SINKS) {
    const float sink = float(sinks[SINKS ? head : 0]) * BASE2;
    const float all = fmaxf(top, sink);
    own = power2(top - all);
    sum = sum * own + power2(sink - all);
  }
  return sum != 0.0f ? own / sum : MASK == ADDITIVE_MASK ? -1.0f : 0.0f;
}

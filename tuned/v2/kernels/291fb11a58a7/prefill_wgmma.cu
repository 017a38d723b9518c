// Prefill with wide heads on Hopper's tensor cores (wgmma, sm_90a): the shared part.
//
// The GROUP query heads of a KV head, position by position, are rows of one matrix: row i stands
// for head i / q_len of the group and query position i % q_len. A block takes 128 rows, a warpgroup
// of four warps 64 of them: it holds its queries and its weighted sums in registers, and its tensor
// cores read keys and values from shared memory. Tiles of KEYS keys and values pass through three
// slots there, copied two tiles ahead, so that one barrier a tile suffices.
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

// A tile of KEYS rows in shared memory: slabs of 64 columns, each row of a slab 128 bytes, whose
// 16-byte chunks are swapped by the row's last three bits. Slabs begin at multiples of 1024 bytes.
// This is what the tensor cores know as 128-byte swizzle, read along the rows (keys) or across
// them (values).
template <int KEYS>
__device__ inline int place(int row, int chunk) {
  return (chunk / 8 * KEYS + row) * 64 + ((chunk ^ row) & 7) * 8;
}

// The descriptor of an operand that begins there: 1024 bytes from 8 rows to the next 8.
__device__ inline uint64_t describe(const void* from) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(from));
  return uint64_t((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Products of 64 rows in the registers of a warpgroup with a tile in shared memory, 16 summed
// indices at a time. What `add` is 0 for replaces d. They run behind the warps' back: between
// begin_products and end_products their registers and the tile belong to the tensor cores.
#define SCORES(T, BEGIN)                                                                   \
  __device__ inline void multiply_keys(float (&d)[16], const uint32_t (&a)[4], uint64_t b, \
      int add, T) {                                                                        \
    asm volatile(BEGIN                                                                     \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"                            \
        "},{%16,%17,%18,%19}, %20, p, 1, 1, 0;}"                                           \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                  \
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                  \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                \
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                   \
  }
SCORES(__nv_bfloat16, "{.reg .pred p;\n setp.ne.b32 p, %21, 0;\n"
       "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {")
SCORES(__half, "{.reg .pred p;\n setp.ne.b32 p, %21, 0;\n"
       "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {")
#undef SCORES
#define VALUES(T, BEGIN)                                                                   \
  __device__ inline void multiply_values(float (&d)[32], const uint32_t (&a)[4], uint64_t b,\
      int add, T) {                                                                        \
    asm volatile(BEGIN                                                                     \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                           \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"                  \
        "},{%32,%33,%34,%35}, %36, p, 1, 1, 1;}"                                           \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                  \
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                  \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                \
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),                              \
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),                              \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),                              \
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),                              \
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                   \
  }
VALUES(__nv_bfloat16, "{.reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
       "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {")
VALUES(__half, "{.reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
       "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {")
#undef VALUES

// Keeps the compiler from moving registers of a product over the fences around it.
template <int N>
__device__ inline void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    asm volatile("" : "+f"(d[i]) :: "memory");
  }
}

__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Makes what this thread wrote to shared memory visible to the tensor cores.
__device__ inline void publish() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

// Copies rows first to first + KEYS - 1 of keys or values, those beyond the last one as the last.
template <typename T, int WIDTH, int KEYS>
__device__ inline void stage(T* to, const T* rows, int64_t row_step, int64_t step, int first,
                             int length, bool wide) {
  constexpr int CHUNKS = WIDTH / 8;
  if (wide) {
#pragma unroll
    for (int i = 0; i < KEYS * CHUNKS / 256; ++i) {
      const int at = threadIdx.x + i * 256;
      const int row = at / CHUNKS;
      copy_async(to + place<KEYS>(row, at % CHUNKS),
                 rows + min(first + row, length - 1) * row_step + at % CHUNKS * 8);
    }
  } else {
#pragma unroll 1
    for (int at = threadIdx.x; at < KEYS * WIDTH; at += 256) {
      const int row = at / WIDTH;
      const int column = at % WIDTH;
      to[place<KEYS>(row, column / 8) + column % 8] =
          rows[min(first + row, length - 1) * row_step + column * step];
    }
  }
}

// What a lane knows of its rows g = lane / 4 and g + 8 of the warp's 16. Element 4 j + e of a
// slab's sums is in row g + e / 2 * 8 and column 8 j + 2 c + e % 2, where c = lane % 4.
template <int DV>
struct Accumulator {
  float top[2];
  float sum[2];
  float out[DV / 64][32];
};

// Attends for 128 rows from row0 on of one KV head.
template <typename T, int D, int DV, int GROUP, int MASK, typename Mask>
__device__ inline void attend(Accumulator<DV>& state, T* slots, const T* queries,
                              const Strides& q_strides, const T* keys, const Strides& k_strides,
                              const T* values, const Strides& v_strides, const Mask* mask,
                              const Strides& m_strides, float scale, int q_len, int kv_len,
                              int batch, int kv_head, int row0, int warp, int lane) {
  constexpr int KEYS = 32;
  constexpr int SLOT = KEYS * (D > DV ? D : DV);
  constexpr unsigned ALL = 0xffffffffu;
  static_assert(D % 64 == 0 && DV % 64 == 0 && sizeof(T) == 2, "shape not carried");
  const int g = lane / 4;
  const int c = lane % 4;
  const int rows = GROUP * q_len;
  const float scale2 = scale * BASE2;
  queries += batch * q_strides[0] + kv_head * GROUP * q_strides[1];
  keys += batch * k_strides[0] + kv_head * k_strides[1];
  values += batch * v_strides[0] + kv_head * v_strides[1];
  mask += batch * m_strides[0] + kv_head * GROUP * m_strides[1];
  const bool wide =
      (reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&
      (k_strides[2] | v_strides[2]) % 8 == 0 && k_strides[3] == 1 && v_strides[3] == 1;

  // The positions of some rows, and how many keys the least and the most seeing of them may see.
  const auto extent = [&](int from, int count, int& least, int& most) {
    const int last = min(from + count, rows) - 1;
    const bool one_head = last / q_len == from / q_len;
    const int before = MASK == CAUSAL_MASK ? kv_len - q_len + 1 : kv_len;
    least = before + (MASK == CAUSAL_MASK && one_head ? from % q_len : 0);
    most = before + (MASK != CAUSAL_MASK ? 0 : one_head ? last % q_len : q_len - 1);
  };
  int least, most;
  extent(row0, 128, least, most);
  const int count = (most + KEYS - 1) / KEYS;  // what lies beyond is not even copied
  const int own = row0 + warp / 4 * 64;
  extent(min(own, rows - 1), 64, least, most);
  most = own < rows ? most : 0;
  int staged = 0;
  int slot = 0;
  const auto stage_next = [&]() {
    if (staged < 2 * count) {
      const int first = staged / 2 * KEYS;
      T* to = slots + slot * SLOT;
      if (staged % 2 == 0) {
        stage<T, D, KEYS>(to, keys, k_strides[2], k_strides[3], first, kv_len, wide);
      } else {
        stage<T, DV, KEYS>(to, values, v_strides[2], v_strides[3], first, kv_len, wide);
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
    const int row = min(row0 + warp * 16 + 8 * h + g, rows - 1);
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
  for (int s = 0; s < DV / 64; ++s) {
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      state.out[s][e] = 0.0f;
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
    const int first = n * KEYS;
    bool busy = first < most;
    // An additive mask comes as the scores lie; of a bool mask a lane reads a key in every row.
    uint32_t pairs[MASK == ADDITIVE_MASK ? KEYS / 8 : 1][2];
    bool shown[MASK == BOOL_MASK ? 16 : 1];
    if constexpr (MASK == ADDITIVE_MASK) {
#pragma unroll
      for (int i = 0; i < KEYS / 8; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          pairs[i][h] =
              read_pair(mask + mask_row[h], m_strides[3], first + 8 * i + 2 * c, kv_len);
        }
      }
    } else if constexpr (MASK == BOOL_MASK) {
      const Mask* const column = mask + (first + lane) * m_strides[3];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        int64_t from = first_row + i * m_strides[2];
        if (!one_head) {
          from = __shfl_sync(ALL, mask_row[i / 8], i % 8 * 4);
        }
        shown[i] = first + lane < kv_len && column[from];
      }
    }

    uint32_t visible[2];  // of a bool mask, bit by bit
    bool any = true;
    if constexpr (MASK == ADDITIVE_MASK) {
      any = false;
#pragma unroll
      for (int i = 0; i < KEYS / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          any = any || (first + 8 * i + 2 * c + e % 2 < kv_len &&
                        bias_of<T>(pairs[i][e / 2], e % 2) > HIDING_BIAS);
        }
      }
    } else if constexpr (MASK == BOOL_MASK) {
      uint32_t all = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const uint32_t word = __ballot_sync(ALL, shown[i]);
        all |= word;
        visible[i / 8] = g == i % 8 ? word : visible[i / 8];
      }
      any = all != 0;
    }
    wait_copies<1>();
    publish();
    if constexpr (MASK >= BOOL_MASK) {
      busy = __syncthreads_or(any);
    } else {
      __syncthreads();
    }
    stage_next();
    float score[KEYS / 2] = {};
    if (busy) {
      const T* tile = slots + used * SLOT;
      hold(score);
      begin_products();
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        multiply_keys(
            score, q[k], describe(tile + k / 4 * KEYS * 64 + k % 4 * 16), k > 0, T());
      }
      end_products();
      hold(score);
      const bool whole = MASK <= CAUSAL_MASK && first + KEYS <= least;
      float next[2] = {state.top[0], state.top[1]};
#pragma unroll
      for (int i = 0; i < KEYS / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = first + 8 * i + 2 * c + e % 2;
          float x = score[4 * i + e] * scale2;
          if constexpr (MASK == BOOL_MASK) {
            x = visible[e / 2] >> (8 * i + 2 * c + e % 2) & 1 ? x : HIDDEN_SCORE;
          } else if constexpr (MASK == ADDITIVE_MASK) {
            const float bias = bias_of<T>(pairs[i][e / 2], e % 2);
            x = key < kv_len && bias > HIDING_BIAS ? fmaf(bias, BASE2, x) : HIDDEN_SCORE;
          } else {
            x = whole || key < seen[e / 2] ? x : HIDDEN_SCORE;
          }
          score[4 * i + e] = x;
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
      for (int i = 0; i < KEYS / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[4 * i + e] = power2(score[4 * i + e] - next[e / 2]);
          state.sum[e / 2] += score[4 * i + e];
        }
      }
      if (__any_sync(ALL, fade[0] != 1.0f || fade[1] != 1.0f)) {
#pragma unroll
        for (int s = 0; s < DV / 64; ++s) {
#pragma unroll
          for (int e = 0; e < 32; ++e) {
            state.out[s][e] *= fade[e / 2 % 2];
          }
        }
      }
    }
    used = used == 2 ? 0 : used + 1;

    wait_copies<1>();
    publish();
    __syncthreads();
    stage_next();
    if (busy) {
      const T* tile = slots + used * SLOT;
      uint32_t p[KEYS / 16][4];
#pragma unroll
      for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[k][e] = pack(score[8 * k + 2 * e], score[8 * k + 2 * e + 1], T());
        }
      }
#pragma unroll
      for (int s = 0; s < DV / 64; ++s) {
        hold(state.out[s]);
      }
      begin_products();
#pragma unroll
      for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
        for (int s = 0; s < DV / 64; ++s) {
          multiply_values(
              state.out[s], p[k], describe(tile + (s * KEYS + 16 * k) * 64), 1, T());
        }
      }
      end_products();
#pragma unroll
      for (int s = 0; s < DV / 64; ++s) {
        hold(state.out[s]);
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

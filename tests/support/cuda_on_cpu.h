// The part of CUDA that the native stages of tuned/ use, on the CPU and for tests only.
//
// Every thread of a block is a fiber. What a warp does together (shuffles, votes, the tensor cores'
// products) is computed by the last lane to come. Copies behind a thread's back arrive as late as
// they may, and shared memory is full of NaN at first. Of some blocks at a time each runs until it
// ends, or meets memory that blocks share.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

using std::max;
using std::min;

#define __device__
#define __global__
#define __noinline__
#define __forceinline__ inline
#define __shared__ static __attribute__((section("block_shared")))
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
inline uint32_t __float_as_uint(float x) { return same_bits<uint32_t>(x); }

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    const uint32_t word = same_bits<uint32_t>(x);
    bits = x != x ? 0x7fc0 : (word + ((word >> 16 & 1) + 0x7fff)) >> 16;
  }
  operator float() const { return same_bits<float>(uint32_t(bits) << 16); }
};
struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x) : bits(_cvtss_sh(x, 0)) {}
  operator float() const { return _cvtsh_ss(bits); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= uint32_t(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  }
  return result;
}
inline void __threadfence() {}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }

namespace fibers {

enum State { RUNS, AT_WARP, AT_BARRIER, DONE };

struct Copy {
  void* to;
  const void* from;
};
struct Fiber {
  void* stack;
  uint3 thread;
  int warp;
  State state;
  const char* what;  // the collective it waits in, and the line
  int line;
  alignas(16) unsigned char in[64];
  alignas(16) unsigned char out[64];
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

extern Fiber* fiber;   // the one that runs
extern Fiber* all;     // of the block
extern int* arrived;   // lanes of a warp that wait
extern uint3 block, threads, blocks;

void wait(State state);
void barrier(int line);
int vote(bool mine, int line);
void rest(int chance);  // for other blocks to go on, once in so many calls
unsigned processors();
[[noreturn]] void fail(const char* what);

// Every lane of the warp comes with an In and leaves with an Out, which `compute` makes of all.
template <class Out, class In, class Compute>
Out together(const char* what, int line, In in, Compute compute) {
  static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64);
  memcpy(fiber->in, &in, sizeof(In));
  fiber->what = what;
  fiber->line = line;
  Fiber* lanes = all + fiber->warp * 32;
  if (++arrived[fiber->warp] < 32) {
    wait(AT_WARP);
  } else {
    In ins[32];
    Out outs[32];
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane].what != what || lanes[lane].line != line) {
        fail("lanes of a warp are at different places");
      }
      memcpy(&ins[lane], lanes[lane].in, sizeof(In));
    }
    compute(ins, outs);
    for (int lane = 0; lane < 32; ++lane) {
      memcpy(lanes[lane].out, &outs[lane], sizeof(Out));
      lanes[lane].state = RUNS;
    }
    arrived[fiber->warp] = 0;
  }
  Out out;
  memcpy(&out, fiber->out, sizeof(Out));
  return out;
}

}  // namespace fibers

// Between two of these other blocks may do anything.
template <class T>
T atomicExch(T* at, T value) {
  fibers::rest(2);
  return std::exchange(*at, value);
}
template <class T>
T atomicAdd(T* at, T value) {
  fibers::rest(2);
  return std::exchange(*at, T(*at + value));
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
  fibers::rest(2);
  return *at == expected ? std::exchange(*at, value) : *at;
}

#define threadIdx (fibers::fiber->thread)
#define blockIdx (fibers::block)
#define blockDim (fibers::threads)
#define gridDim (fibers::blocks)
#define LINE int line = __builtin_LINE()

inline void __syncthreads(LINE) { fibers::barrier(line); }
inline int __syncthreads_or(int mine, LINE) { return fibers::vote(mine != 0, line); }
inline void __syncwarp(LINE) {
  fibers::together<int>("syncwarp", line, 0, [](int*, int* out) { std::fill_n(out, 32, 0); });
}
template <class T>
T shuffle(const char* what, unsigned mask, T value, int lane, int line) {
  if (mask != ~0u) fibers::fail("a shuffle without all lanes");
  const std::pair<T, int> in(value, lane & 31);
  return fibers::together<T>(what, line, in, [](std::pair<T, int>* in, T* out) {
    for (int i = 0; i < 32; ++i) out[i] = in[in[i].second].first;
  });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, LINE) {
  return shuffle("shfl", mask, value, lane, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, LINE) {
  return shuffle("shfl_xor", mask, value, int(threadIdx.x % 32) ^ lanes, line);
}
inline unsigned __ballot_sync(unsigned mask, bool mine, LINE) {
  if (mask != ~0u) fibers::fail("a vote without all lanes");
  return fibers::together<unsigned>("ballot", line, mine, [](bool* in, unsigned* out) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(in[i]) << i;
    std::fill_n(out, 32, bits);
  });
}
inline bool __any_sync(unsigned mask, bool mine, LINE) { return __ballot_sync(mask, mine, line); }
inline bool __all_sync(unsigned mask, bool mine, LINE) {
  return __ballot_sync(mask, mine, line) == ~0u;
}

// What stands for the stages' functions that hold assembly, by their names.
namespace mlx::core::cu {

using Shape = std::array<int32_t, 10>;
using Strides = std::array<int64_t, 10>;

inline float __fdividef(float a, float b) { return a / b; }
inline float power2(float x) {
  const float y = std::exp2(x);
  return std::fabs(y) < 1.17549435e-38f ? 0.0f : y;  // ex2.approx.ftz
}

inline unsigned long long look(const unsigned long long* at) {  // ld.relaxed.gpu
  fibers::rest(1);
  return *at;
}

using fibers::processors;  // %nsmid

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }  // lop3

template <class T>
float element(uint32_t pair, int e) {
  return float(same_bits<T>(uint16_t(e ? pair >> 16 : pair & 0xffff)));
}

// The left operand of a product of 16 rows: registers of 32 lanes as a matrix.
template <class T, class In>
void unpack(const In* in, float (&a)[16][16]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      for (int e = 0; e < 2; ++e) {
        a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8 + e] = element<T>(in[lane].a[r], e);
      }
    }
  }
}

// mma.sync.m16n8k16
template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T, LINE) {
  struct In {
    uint32_t a[4], b[2];
    float c[4];
  } in = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  struct Out {
    float c[4];
  };
  const Out out = fibers::together<Out>("mma", line, in, [](In* in, Out* out) {
    float a[16][16], b[16][8];
    unpack<T>(in, a);
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 4; ++e) {
        b[lane % 4 * 2 + e / 2 * 8 + e % 2][lane / 4] = element<T>(in[lane].b[e / 2], e % 2);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 4; ++e) {
        float sum = in[lane].c[e];
        for (int k = 0; k < 16; ++k) {
          sum += a[lane / 4 + e / 2 * 8][k] * b[k][lane % 4 * 2 + e % 2];
        }
        out[lane].c[e] = sum;
      }
    }
  });
  memcpy(c, out.c, sizeof(out));
}

// The same of an A whose rows 8 to 15 are zero: the upper half of the result.
inline void att_mma8(
    float& c0, float& c1, uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1, LINE) {
  float c[4] = {c0, c1, 0, 0};
  const uint32_t a[4] = {a0, 0, a2, 0};
  multiply(c, a, b0, b1, __nv_bfloat16(), line);
  c0 = c[0];
  c1 = c[1];
}

// The same of half numbers, by its registers.
inline void mma_halves(
    float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, LINE) {
  const uint32_t a[4] = {a0, a1, a2, a3};
  multiply(*reinterpret_cast<float(*)[4]>(c), a, b0, b1, __half(), line);
}

// ld.global.nc.L1::no_allocate of 16 and of 8 bytes
inline uint4 load_stream(const uint4* from) { return *from; }
inline uint2 load_stream2(const void* from) { return *reinterpret_cast<const uint2*>(from); }

// movmatrix.m8n8.trans
inline uint32_t turn(uint32_t tile, LINE) {
  return fibers::together<uint32_t>("movmatrix", line, tile, [](uint32_t* in, uint32_t* out) {
    uint16_t m[8][8];
    for (int i = 0; i < 64; ++i) m[i / 8][i % 8] = in[i / 2] >> i % 2 * 16;
    for (int i = 0; i < 32; ++i) {
      out[i] = m[i % 4 * 2][i / 4] | uint32_t(m[i % 4 * 2 + 1][i / 4]) << 16;
    }
  });
}

// ldmatrix.x4, with .trans where TURNED
template <bool TURNED>
void load_tiles(uint32_t (&to)[4], const void* row, int line) {
  struct Out {
    uint32_t words[4];
  };
  if (reinterpret_cast<size_t>(row) % 16) fibers::fail("ldmatrix: a row off 16 bytes");
  const char* what = TURNED ? "ldmatrix.trans" : "ldmatrix";
  const Out out = fibers::together<Out>(what, line, row, [](const void** in, Out* out) {
    for (int tile = 0; tile < 4; ++tile) {
      uint16_t m[8][8];
      for (int r = 0; r < 8; ++r) memcpy(m[r], in[8 * tile + r], 16);
      for (int i = 0; i < 32; ++i) {
        const int g = i / 4, c = i % 4 * 2;
        out[i].words[tile] = TURNED ? m[c][g] | uint32_t(m[c + 1][g]) << 16
                                    : m[g][c] | uint32_t(m[g][c + 1]) << 16;
      }
    }
  });
  memcpy(to, out.words, sizeof(out));
}
inline void load_matrices(uint32_t (&to)[4], const void* row, LINE) {
  load_tiles<false>(to, row, line);
}
inline void load_turned(uint32_t (&to)[4], const void* row, LINE) {
  load_tiles<true>(to, row, line);
}

// cp.async
inline void copy_async(void* to, const void* from) {
  if ((reinterpret_cast<size_t>(to) | reinterpret_cast<size_t>(from)) % 16) {
    fibers::fail("cp.async: an address off 16 bytes");
  }
  fibers::fiber->open.push_back({to, from});
}
inline void commit_copies() {
  fibers::fiber->groups.push_back(std::exchange(fibers::fiber->open, {}));
}
template <int N>
void wait_copies() {
  auto& groups = fibers::fiber->groups;
  while (groups.size() > N) {
    for (const auto& copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

// wgmma of a warp's 16 rows with a tile of 128-byte swizzle whose next 8 rows are 1024 bytes on:
// N columns; ACROSS: the tile's rows are the summed index. Not emulated: that it runs behind the
// warp's back, and which memory the tensor cores see when.
inline uint64_t describe(const void* from) { return reinterpret_cast<uint64_t>(from); }
template <int N>
void hold(float (&)[N]) {}
inline void begin_products() {}
inline void end_products(LINE) { __syncwarp(line); }
inline void publish() {}

template <class T, int N, bool ACROSS>
void product(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add, int line) {
  struct In {
    uint32_t a[4];
    float* d;
    uint64_t b;
    int add;
  } in = {{a[0], a[1], a[2], a[3]}, d, b, add};
  const char* what = ACROSS ? "wgmma across" : "wgmma";
  fibers::together<int>(what, line, in, [](In* in, int* out) {
    float a[16][16];
    static float b[16][N];
    unpack<T>(in, a);
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < N; ++n) {
        uint64_t at = in->b + (ACROSS ? n * 2 + k % 8 * 128 + k / 8 * 1024
                                      : k * 2 + n % 8 * 128 + n / 8 * 1024);
        at ^= (at >> 7 & 7) << 4;
        b[k][n] = float(*reinterpret_cast<T*>(at));
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (in[lane].b != in->b) fibers::fail("wgmma: lanes with different descriptors");
      out[lane] = 0;
      for (int i = 0; i < N / 2; ++i) {
        float sum = in[lane].add ? in[lane].d[i] : 0.0f;
        for (int k = 0; k < 16; ++k) {
          sum += a[lane / 4 + i / 2 % 2 * 8][k] * b[k][i / 4 * 8 + lane % 4 * 2 + i % 2];
        }
        in[lane].d[i] = sum;
      }
    }
  });
}
template <class T>
void multiply_keys(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int add, T, LINE) {
  product<T, 32, false>(d, a, b, add, line);
}
template <class T>
void multiply_values(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add, T, LINE) {
  product<T, 64, true>(d, a, b, add, line);
}

}  // namespace mlx::core::cu

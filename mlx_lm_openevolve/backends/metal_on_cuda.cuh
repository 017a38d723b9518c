// The part of the Metal Shading Language that attention bodies use, on CUDA.
//
// A Metal body, after the small rewrite of backends/cuda.py, is compiled behind this header by
// NVRTC inside namespace mlx::core::cu, where these names hide CUDA's own float4 and its like.
// Both GPUs have simdgroups of 32 lanes. Collectives take the full mask: a body that calls one
// under divergence is undefined here, and the host run has to reject it first.
#pragma once

#include <cuda/std/type_traits>

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

namespace mlx::core::cu {

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = __half;
using bfloat = __nv_bfloat16;
using float16_t = __half;
using bfloat16_t = __nv_bfloat16;

// Vectors. Like Metal's, a vector of three takes the room of four.

template <typename T, int N>
struct vec;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  vec() = default;
  vec(T s) : x(s), y(s) {}
  vec(T x, T y) : x(x), y(y) {}
  template <typename U>
  explicit vec(const vec<U, 2>& v) : x(T(v.x)), y(T(v.y)) {}
  T& operator[](int i) { return i == 0 ? x : y; }
  const T& operator[](int i) const { return i == 0 ? x : y; }
  template <int... I>
  vec<T, sizeof...(I)> swizzle() const { return {(*this)[I]...}; }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  vec() = default;
  vec(T s) : x(s), y(s), z(s) {}
  vec(T x, T y, T z) : x(x), y(y), z(z) {}
  vec(vec<T, 2> v, T z) : x(v.x), y(v.y), z(z) {}
  template <typename U>
  explicit vec(const vec<U, 3>& v) : x(T(v.x)), y(T(v.y)), z(T(v.z)) {}
  T& operator[](int i) { return i == 0 ? x : i == 1 ? y : z; }
  const T& operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; }
  template <int... I>
  vec<T, sizeof...(I)> swizzle() const { return {(*this)[I]...}; }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  vec(T s) : x(s), y(s), z(s), w(s) {}
  vec(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
  vec(vec<T, 3> v, T w) : x(v.x), y(v.y), z(v.z), w(w) {}
  template <typename U>
  explicit vec(const vec<U, 4>& v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
  T& operator[](int i) { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
  const T& operator[](int i) const { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
  template <int... I>
  vec<T, sizeof...(I)> swizzle() const { return {(*this)[I]...}; }
};

#define EACH_LANE_PAIR(op)                                                   \
  template <typename T, int N>                                               \
  inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {                   \
    for (int i = 0; i < N; ++i) a[i] = a[i] op b[i];                         \
    return a;                                                                \
  }                                                                          \
  template <typename T, int N, typename S>                                   \
  inline cuda::std::enable_if_t<cuda::std::is_convertible_v<S, T>, vec<T, N>> \
  operator op(vec<T, N> a, S b) {                                            \
    for (int i = 0; i < N; ++i) a[i] = a[i] op T(b);                         \
    return a;                                                                \
  }                                                                          \
  template <typename T, int N, typename S>                                   \
  inline cuda::std::enable_if_t<cuda::std::is_convertible_v<S, T>, vec<T, N>> \
  operator op(S a, vec<T, N> b) {                                            \
    for (int i = 0; i < N; ++i) b[i] = T(a) op b[i];                         \
    return b;                                                                \
  }                                                                          \
  template <typename T, int N, typename S>                                   \
  inline vec<T, N>& operator op##=(vec<T, N>& a, S b) {                      \
    return a = a op b;                                                       \
  }
EACH_LANE_PAIR(+)
EACH_LANE_PAIR(-)
EACH_LANE_PAIR(*)
EACH_LANE_PAIR(/)
EACH_LANE_PAIR(&)
EACH_LANE_PAIR(|)
EACH_LANE_PAIR(^)
EACH_LANE_PAIR(<<)
EACH_LANE_PAIR(>>)
#undef EACH_LANE_PAIR

template <typename T, int N>
inline vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; ++i) a[i] = -a[i];
  return a;
}

#define VECTORS(name, T) \
  using name##2 = vec<T, 2>; \
  using name##3 = vec<T, 3>; \
  using name##4 = vec<T, 4>;
VECTORS(float, float)
VECTORS(half, half)
VECTORS(bfloat, bfloat)
VECTORS(char, signed char)
VECTORS(uchar, uchar)
VECTORS(short, short)
VECTORS(ushort, ushort)
VECTORS(int, int)
VECTORS(uint, uint)
VECTORS(long, long)
VECTORS(ulong, ulong)
VECTORS(bool, bool)
#undef VECTORS

template <typename To, typename From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Arithmetic functions, element by element on vectors.

#define UNARY(name, expression) \
  inline float name(float x) { return expression; } \
  template <typename T> \
  inline cuda::std::enable_if_t<sizeof(T) == 2, T> name(T x) { return T(name(float(x))); } \
  template <typename T, int N> \
  inline vec<T, N> name(vec<T, N> v) { \
    for (int i = 0; i < N; ++i) v[i] = name(v[i]); \
    return v; \
  }
UNARY(exp, ::expf(x))
UNARY(exp2, ::exp2f(x))
UNARY(exp10, ::exp10f(x))
UNARY(log, ::logf(x))
UNARY(log2, ::log2f(x))
UNARY(log10, ::log10f(x))
UNARY(sqrt, ::sqrtf(x))
UNARY(rsqrt, ::rsqrtf(x))
UNARY(sin, ::sinf(x))
UNARY(cos, ::cosf(x))
UNARY(tan, ::tanf(x))
UNARY(tanh, ::tanhf(x))
UNARY(fabs, ::fabsf(x))
UNARY(floor, ::floorf(x))
UNARY(ceil, ::ceilf(x))
UNARY(round, ::roundf(x))
UNARY(rint, ::rintf(x))
UNARY(trunc, ::truncf(x))

namespace fast {
inline float raw_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
UNARY(exp2, raw_exp2(x))
UNARY(exp, raw_exp2(x * 1.44269504088896f))
UNARY(log, ::__logf(x))
UNARY(log2, ::__log2f(x))
UNARY(sin, ::__sinf(x))
UNARY(cos, ::__cosf(x))
UNARY(sqrt, ::sqrtf(x))
UNARY(rsqrt, ::rsqrtf(x))
UNARY(tanh, ::tanhf(x))
inline float divide(float a, float b) { return ::__fdividef(a, b); }
} // namespace fast

namespace precise {
using mlx::core::cu::cos;
using mlx::core::cu::exp;
using mlx::core::cu::exp2;
using mlx::core::cu::log;
using mlx::core::cu::log2;
using mlx::core::cu::rsqrt;
using mlx::core::cu::sin;
using mlx::core::cu::sqrt;
using mlx::core::cu::tanh;
inline float divide(float a, float b) { return ::__fdiv_rn(a, b); }
} // namespace precise
#undef UNARY

template <typename T>
inline T max(T a, T b) { return a < b ? b : a; }
template <typename T>
inline T min(T a, T b) { return b < a ? b : a; }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline float min(float a, float b) { return ::fminf(a, b); }
inline float fmax(float a, float b) { return ::fmaxf(a, b); }
inline float fmin(float a, float b) { return ::fminf(a, b); }
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return ::__hfma(a, b, c); }
inline float pow(float a, float b) { return ::powf(a, b); }
inline float atan2(float a, float b) { return ::atan2f(a, b); }
inline float fmod(float a, float b) { return ::fmodf(a, b); }
template <typename T>
inline T abs(T a) { return a < T(0) ? -a : a; }
inline float abs(float a) { return ::fabsf(a); }
template <typename T>
inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
inline float saturate(float x) { return ::__saturatef(x); }
inline float mix(float a, float b, float t) { return a + (b - a) * t; }
template <typename T>
inline T select(T a, T b, bool second) { return second ? b : a; }
template <typename T>
inline bool isnan(T x) { return float(x) != float(x); }
template <typename T>
inline bool isinf(T x) { return ::fabsf(float(x)) == INFINITY; }
template <typename T>
inline bool isfinite(T x) { return ::fabsf(float(x)) < INFINITY; }
inline uint popcount(uint x) { return ::__popc(x); }
inline uint clz(uint x) { return ::__clz(x); }
inline uint ctz(uint x) { return x ? ::__ffs(x) - 1 : 32; }

template <typename T, int N>
inline vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; ++i) a[i] = max(a[i], b[i]);
  return a;
}
template <typename T, int N>
inline vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; ++i) a[i] = min(a[i], b[i]);
  return a;
}
template <typename T, int N>
inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; ++i) c[i] = fma(a[i], b[i], c[i]);
  return c;
}
template <typename T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a.x * b.x;
  for (int i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

// Threads of a threadgroup and lanes of a simdgroup.

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(mem_flags) { ::__syncthreads(); }
inline void simdgroup_barrier(mem_flags) { ::__syncwarp(); }

struct simd_vote {
  using vote_t = ulong;
  uint lanes;
  explicit operator vote_t() const { return lanes; }
  bool all() const { return lanes == 0xffffffffu; }
  bool any() const { return lanes != 0; }
};
inline simd_vote simd_ballot(bool x) { return {::__ballot_sync(0xffffffffu, x)}; }
inline bool simd_all(bool x) { return ::__all_sync(0xffffffffu, x); }
inline bool simd_any(bool x) { return ::__any_sync(0xffffffffu, x); }

#define SHUFFLE(name, cuda_name) \
  template <typename T> \
  inline T name(T x, ushort n) { return ::cuda_name(0xffffffffu, x, n); } \
  template <typename T, int N> \
  inline vec<T, N> name(vec<T, N> v, ushort n) { \
    for (int i = 0; i < N; ++i) v[i] = ::cuda_name(0xffffffffu, v[i], n); \
    return v; \
  }
SHUFFLE(simd_shuffle, __shfl_sync)
SHUFFLE(simd_broadcast, __shfl_sync)
SHUFFLE(simd_shuffle_xor, __shfl_xor_sync)
SHUFFLE(simd_shuffle_up, __shfl_up_sync)
SHUFFLE(simd_shuffle_down, __shfl_down_sync)
#undef SHUFFLE

#define REDUCE(name, combined) \
  template <typename T> \
  inline T name(T a) { \
    for (int away = 16; away > 0; away /= 2) { \
      T b = simd_shuffle_xor(a, away); \
      a = combined; \
    } \
    return a; \
  }
REDUCE(simd_sum, a + b)
REDUCE(simd_product, a * b)
REDUCE(simd_max, max(a, b))
REDUCE(simd_min, min(a, b))
REDUCE(simd_and, a & b)
REDUCE(simd_or, a | b)
REDUCE(simd_xor, a ^ b)
#undef REDUCE

} // namespace mlx::core::cu

namespace metal = mlx::core::cu;

// Math functions. They are overload sets of ordinary functions, as in Metal: a call with mixed
// types is ambiguous here because it is ambiguous there.
#pragma once
#include "vectors.h"

#define MH_EACH_VECTOR(M, T, ...) M(T##2, T, 2, __VA_ARGS__) M(T##3, T, 3, __VA_ARGS__) M(T##4, T, 4, __VA_ARGS__)
#define MH_LOOP1(V, T, N, F) \
  MH_INLINE V F(V a) { V r; for (int i = 0; i < N; ++i) r[i] = F(T(a[i])); return r; }
#define MH_LOOP2(V, T, N, F) \
  MH_INLINE V F(V a, V b) { V r; for (int i = 0; i < N; ++i) r[i] = F(T(a[i]), T(b[i])); return r; }
#define MH_LOOP3(V, T, N, F)                                                     \
  MH_INLINE V F(V a, V b, V c) {                                                 \
    V r;                                                                         \
    for (int i = 0; i < N; ++i) r[i] = F(T(a[i]), T(b[i]), T(c[i]));             \
    return r;                                                                    \
  }
#define MH_VECTORS_OF(LOOP, F, T) MH_EACH_VECTOR(LOOP, T, F)
#define MH_FLOATS(LOOP, F) MH_VECTORS_OF(LOOP, F, float) MH_VECTORS_OF(LOOP, F, half)
#define MH_INTEGERS(LOOP, F)                                                              \
  MH_VECTORS_OF(LOOP, F, char) MH_VECTORS_OF(LOOP, F, uchar) MH_VECTORS_OF(LOOP, F, short) \
  MH_VECTORS_OF(LOOP, F, ushort) MH_VECTORS_OF(LOOP, F, int) MH_VECTORS_OF(LOOP, F, uint)  \
  MH_VECTORS_OF(LOOP, F, long) MH_VECTORS_OF(LOOP, F, ulong)
// Half results are float results rounded.
#define MH_MATH1(F, X)                                          \
  MH_INLINE float F(float x) { return X; }                      \
  MH_INLINE half F(half x) { return half(F(float(x))); }        \
  MH_FLOATS(MH_LOOP1, F)
#define MH_MATH2(F, X)                                                      \
  MH_INLINE float F(float x, float y) { return X; }                         \
  MH_INLINE half F(half x, half y) { return half(F(float(x), float(y))); }  \
  MH_FLOATS(MH_LOOP2, F)
#define MH_MATH3(F, X)                                                                        \
  MH_INLINE float F(float x, float y, float z) { return X; }                                  \
  MH_INLINE half F(half x, half y, half z) { return half(F(float(x), float(y), float(z))); }  \
  MH_FLOATS(MH_LOOP3, F)

namespace mh {
// sin(pi x) and cos(pi x), exact where the result is 0 or 1.
MH_INLINE float sinpi(float x) {
  const float pi = 3.14159265358979323846f, k = __builtin_rintf(2.0f * x), t = x - 0.5f * k;
  const int quarter = int(k - 4.0f * __builtin_floorf(0.25f * k));
  const float s = quarter & 1 ? __builtin_cosf(pi * t) : __builtin_sinf(pi * t);
  return quarter & 2 ? -s : s;
}
MH_INLINE float cospi(float x) {
  const float pi = 3.14159265358979323846f, k = __builtin_rintf(2.0f * x), t = x - 0.5f * k;
  const int quarter = int(k - 4.0f * __builtin_floorf(0.25f * k));
  const float c = quarter & 1 ? -__builtin_sinf(pi * t) : __builtin_cosf(pi * t);
  return quarter & 2 ? -c : c;
}
}  // namespace mh

// Functions of floats that MLX's headers know by other names and for bfloat too.
#define MH_UNARY(X)                                                                            \
  X(acos) X(acosh) X(asin) X(asinh) X(atan) X(atanh) X(ceil) X(cos) X(cosh) X(cospi) X(exp)    \
  X(exp2) X(exp10) X(fabs) X(floor) X(fract) X(log) X(log2) X(log10) X(rint) X(round) X(rsqrt) \
  X(sin) X(sinh) X(sinpi) X(sqrt) X(tan) X(tanh) X(tanpi) X(trunc)
#define MH_BINARY(X) X(atan2) X(divide) X(fmax) X(fmin) X(fmod) X(nextafter) X(pow) X(powr)
#define MH_TERNARY(X) X(fma) X(fmax3) X(fmin3) X(fmedian3)

namespace metal {
namespace precise {
#include "math_functions.h"
}
namespace fast {
#include "math_functions.h"
}
#include "math_functions.h"

// --- tests of floats ---------------------------------------------------------------------------
#define MH_TEST(F, X)                                            \
  MH_INLINE bool F(float x) { return X; }                        \
  MH_INLINE bool F(half x) { return F(float(x)); }               \
  MH_EACH_VECTOR(MH_TEST_VECTOR, float, F) MH_EACH_VECTOR(MH_TEST_VECTOR, half, F)
#define MH_TEST_VECTOR(V, T, N, F) \
  MH_INLINE mh::Bools<N> F(V a) { mh::Bools<N> r; for (int i = 0; i < N; ++i) r[i] = F(T(a[i])); return r; }
MH_TEST(isnan, __builtin_isnan(x))
MH_TEST(isinf, __builtin_isinf(x))
MH_TEST(isfinite, __builtin_isfinite(x))
MH_TEST(isnormal, __builtin_isnormal(x))
MH_TEST(signbit, __builtin_signbit(x) != 0)
#undef MH_TEST
#undef MH_TEST_VECTOR

// --- minimum, maximum, clamp, absolute value -----------------------------------------------------
// Floats: a NaN operand gives the other one, as fmin and fmax do.
#define MH_CLAMP_SCALAR(V, T, N, _)                            \
  MH_INLINE V clamp(V x, T lo, T hi) {                         \
    V r;                                                       \
    for (int i = 0; i < N; ++i) r[i] = clamp(T(x[i]), lo, hi); \
    return r;                                                  \
  }
#define MH_ORDER(T, MIN, MAX)                                                              \
  MH_INLINE constexpr T min(T x, T y) { return MIN; }                                      \
  MH_INLINE constexpr T max(T x, T y) { return MAX; }                                      \
  MH_INLINE constexpr T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }             \
  MH_INLINE constexpr T min3(T x, T y, T z) { return min(x, min(y, z)); }                  \
  MH_INLINE constexpr T max3(T x, T y, T z) { return max(x, max(y, z)); }                  \
  MH_INLINE constexpr T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); } \
  MH_EACH_VECTOR(MH_LOOP2, T, min) MH_EACH_VECTOR(MH_LOOP2, T, max)                        \
  MH_EACH_VECTOR(MH_LOOP3, T, clamp) MH_EACH_VECTOR(MH_CLAMP_SCALAR, T, 0)                 \
  MH_EACH_VECTOR(MH_LOOP3, T, min3) MH_EACH_VECTOR(MH_LOOP3, T, max3)
#define MH_INTEGER_ORDER(T) MH_ORDER(T, y < x ? y : x, x < y ? y : x)
#define MH_FLOAT_ORDER(T) \
  MH_ORDER(T, T(__builtin_fminf(float(x), float(y))), T(__builtin_fmaxf(float(x), float(y))))
MH_INTEGER_ORDER(char) MH_INTEGER_ORDER(uchar) MH_INTEGER_ORDER(short) MH_INTEGER_ORDER(ushort)
MH_INTEGER_ORDER(int) MH_INTEGER_ORDER(uint) MH_INTEGER_ORDER(long) MH_INTEGER_ORDER(ulong)
MH_FLOAT_ORDER(float) MH_FLOAT_ORDER(half)
#undef MH_ORDER
#undef MH_INTEGER_ORDER
#undef MH_FLOAT_ORDER
#undef MH_CLAMP_SCALAR

#define MH_ABS(T) \
  MH_INLINE constexpr T abs(T x) { return T(T(-1) < T(0) && x < T(0) ? -x : x); } \
  MH_EACH_VECTOR(MH_LOOP1, T, abs)
MH_ABS(char) MH_ABS(short) MH_ABS(int) MH_ABS(long)
MH_ABS(uchar) MH_ABS(ushort) MH_ABS(uint) MH_ABS(ulong)
#undef MH_ABS

// --- integers ------------------------------------------------------------------------------------
#define MH_BITS(T)                                                                             \
  MH_INLINE T popcount(T x) { return T(__builtin_popcountg((__make_unsigned(T))(x))); }        \
  MH_INLINE T clz(T x) { return T(__builtin_clzg((__make_unsigned(T))(x), int(sizeof(T) * 8))); } \
  MH_INLINE T ctz(T x) { return T(__builtin_ctzg((__make_unsigned(T))(x), int(sizeof(T) * 8))); } \
  MH_INLINE T reverse_bits(T x) {                                                              \
    T r = 0;                                                                                   \
    for (unsigned i = 0; i < sizeof(T) * 8; ++i) r = T(r | (T(x >> i & 1) << (sizeof(T) * 8 - 1 - i))); \
    return r;                                                                                  \
  }                                                                                            \
  MH_INLINE T rotate(T x, T n) {                                                               \
    typedef __make_unsigned(T) U;                                                              \
    const unsigned bits = sizeof(T) * 8, k = unsigned(n) % bits;                               \
    return k ? T(U(U(x) << k) | U(U(x) >> (bits - k))) : x;                                    \
  }                                                                                            \
  MH_INLINE T extract_bits(T x, uint offset, uint bits) {                                      \
    if (bits == 0) return 0;                                                                   \
    return T(T((__make_unsigned(T))(x) << (sizeof(T) * 8 - bits - offset)) >> (sizeof(T) * 8 - bits)); \
  }                                                                                            \
  MH_INLINE T insert_bits(T base, T insert, uint offset, uint bits) {                          \
    typedef __make_unsigned(T) U;                                                              \
    const U mask = U((bits >= sizeof(T) * 8 ? U(-1) : U((U(1) << bits) - 1)) << offset);       \
    return T((U(base) & U(~mask)) | (U(U(insert) << offset) & mask));                          \
  }                                                                                            \
  MH_INLINE __make_unsigned(T) absdiff(T x, T y) {                                             \
    typedef __make_unsigned(T) U;                                                              \
    return x > y ? U(U(x) - U(y)) : U(U(y) - U(x));                                            \
  }                                                                                            \
  MH_INLINE T addsat(T x, T y) {                                                               \
    T r;                                                                                       \
    if (!__builtin_add_overflow(x, y, &r)) return r;                                           \
    return y < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();                        \
  }                                                                                            \
  MH_INLINE T subsat(T x, T y) {                                                               \
    T r;                                                                                       \
    if (!__builtin_sub_overflow(x, y, &r)) return r;                                           \
    return !numeric_limits<T>::is_signed || y > 0 ? numeric_limits<T>::min()                   \
                                                  : numeric_limits<T>::max();                  \
  }                                                                                            \
  MH_INLINE T hadd(T x, T y) { return T((x & y) + ((x ^ y) >> 1)); }                           \
  MH_INLINE T rhadd(T x, T y) { return T((x | y) - ((x ^ y) >> 1)); }                          \
  MH_EACH_VECTOR(MH_LOOP1, T, popcount) MH_EACH_VECTOR(MH_LOOP1, T, clz)                       \
  MH_EACH_VECTOR(MH_LOOP1, T, ctz)
MH_BITS(char) MH_BITS(uchar) MH_BITS(short) MH_BITS(ushort) MH_BITS(int) MH_BITS(uint)
MH_BITS(long) MH_BITS(ulong)
#undef MH_BITS
MH_INLINE int mulhi(int x, int y) { return int((long(x) * y) >> 32); }
MH_INLINE uint mulhi(uint x, uint y) { return uint((ulong(x) * y) >> 32); }
MH_INLINE long mulhi(long x, long y) { return long((__int128(x) * y) >> 64); }
MH_INLINE ulong mulhi(ulong x, ulong y) { return ulong(((unsigned __int128)(x) * y) >> 64); }
MH_INLINE int mad24(int x, int y, int z) { return x * y + z; }
MH_INLINE uint mad24(uint x, uint y, uint z) { return x * y + z; }
MH_INLINE int mul24(int x, int y) { return x * y; }
MH_INLINE uint mul24(uint x, uint y) { return x * y; }
MH_INLINE int madhi(int x, int y, int z) { return mulhi(x, y) + z; }
MH_INLINE uint madhi(uint x, uint y, uint z) { return mulhi(x, y) + z; }

// --- selection and relations ---------------------------------------------------------------------
template <class T> MH_INLINE enable_if_t<mh::Shape<T>::size == 1, T> select(T a, T b, bool c) {
  return c ? b : a;
}
template <class T, class C>
MH_INLINE enable_if_t<(mh::Shape<T>::size > 1 && mh::Shape<C>::size == mh::Shape<T>::size), T>
select(T a, T b, C c) {
  T r;
  for (int i = 0; i < mh::Shape<T>::size; ++i) r[i] = c[i] ? b[i] : a[i];
  return r;
}
template <class C> MH_INLINE bool all(C c) {
  bool r = true;
  for (int i = 0; i < mh::Shape<C>::size; ++i) r = r && mh::element(c, i) != 0;
  return r;
}
template <class C> MH_INLINE bool any(C c) {
  bool r = false;
  for (int i = 0; i < mh::Shape<C>::size; ++i) r = r || mh::element(c, i) != 0;
  return r;
}

// A value that is the same for all threads: here a plain one.
template <class T> using uniform = T;
template <class T> MH_INLINE constexpr T make_uniform(T v) { return v; }

template <class T, size_t N> struct array {
  T elements[N];
  MH_INLINE constexpr T& operator[](size_t i) { return elements[i]; }
  MH_INLINE constexpr const T& operator[](size_t i) const { return elements[i]; }
  MH_INLINE constexpr size_t size() const { return N; }
};

}  // namespace metal


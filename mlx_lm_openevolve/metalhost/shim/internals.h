// Names inside Apple's headers that MLX's own headers call: the float functions with a flag for
// fast math, and the simdgroup functions.
#pragma once
#include "atomics.h"

#define __METAL_MAYBE_FAST_MATH__ false
#define __METAL_FAST_MATH__ true
#define __METAL_PRECISE_MATH__ false

#define MH_INNER1(F) \
  template <class... Flag> MH_INLINE float __metal_##F(float x, Flag...) { return metal::F(x); }
#define MH_INNER2(F) \
  template <class... Flag> MH_INLINE float __metal_##F(float x, float y, Flag...) { return metal::F(x, y); }
#define MH_INNER3(F)                                                          \
  template <class... Flag>                                                    \
  MH_INLINE float __metal_##F(float x, float y, float z, Flag...) {           \
    return metal::F(x, y, z);                                                 \
  }
MH_INNER1(acos) MH_INNER1(acosh) MH_INNER1(asin) MH_INNER1(asinh) MH_INNER1(atan) MH_INNER1(atanh)
MH_INNER1(ceil) MH_INNER1(cos) MH_INNER1(cosh) MH_INNER1(cospi) MH_INNER1(exp) MH_INNER1(exp2)
MH_INNER1(exp10) MH_INNER1(fabs) MH_INNER1(floor) MH_INNER1(fract) MH_INNER1(log) MH_INNER1(log2)
MH_INNER1(log10) MH_INNER1(rint) MH_INNER1(round) MH_INNER1(rsqrt) MH_INNER1(sin) MH_INNER1(sinh)
MH_INNER1(sinpi) MH_INNER1(sqrt) MH_INNER1(tan) MH_INNER1(tanh) MH_INNER1(tanpi) MH_INNER1(trunc)
MH_INNER2(atan2) MH_INNER2(divide) MH_INNER2(fmax) MH_INNER2(fmin) MH_INNER2(fmod)
MH_INNER2(nextafter) MH_INNER2(pow) MH_INNER2(powr)
MH_INNER3(fma) MH_INNER3(fmax3) MH_INNER3(fmin3) MH_INNER3(fmedian3)
#undef MH_INNER1
#undef MH_INNER2
#undef MH_INNER3
template <class... Flag> MH_INLINE float __metal_ldexp(float x, int k, Flag...) {
  return metal::ldexp(x, k);
}
MH_INLINE float __metal_frexp(float x, thread int* exponent) { return metal::frexp(x, *exponent); }

MH_INLINE ushort __metal_get_thread_index_in_simdgroup(ushort) { return ushort(mh::lane()); }
MH_INLINE ushort __metal_get_simdgroup_size(ushort) { return 32; }

#define MH_INNER(F)                                                                      \
  template <class T> MH_INLINE T __metal_simd_##F(T x) {    \
    return metal::simd_##F(x);                                                     \
  }
MH_INNER(max) MH_INNER(min) MH_INNER(sum) MH_INNER(product) MH_INNER(prefix_exclusive_sum) MH_INNER(prefix_inclusive_sum)
MH_INNER(prefix_exclusive_product) MH_INNER(prefix_inclusive_product)
#undef MH_INNER
// MLX's bfloat header names it for float, though nothing calls it.
MH_INLINE float __metal_simd_xor(float x) {
  return as_type<float>(metal::simd_xor(as_type<uint>(x)));
}
#define MH_INNER(F)                                                                              \
  template <class T> MH_INLINE T __metal_simd_##F(T x, ushort k) {  \
    return metal::simd_##F(x, k);                                                          \
  }
MH_INNER(shuffle) MH_INNER(shuffle_xor) MH_INNER(shuffle_up) MH_INNER(shuffle_down)
MH_INNER(shuffle_rotate_up) MH_INNER(shuffle_rotate_down) MH_INNER(broadcast)
#undef MH_INNER
#define MH_INNER(F)                                                                             \
  template <class T> MH_INLINE T __metal_simd_##F(T x, T fill, ushort k, ushort modulo) {       \
    return metal::simd_##F(x, fill, k, modulo);                                                 \
  }
MH_INNER(shuffle_and_fill_up) MH_INNER(shuffle_and_fill_down)
#undef MH_INNER

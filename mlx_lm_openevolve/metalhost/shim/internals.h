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
MH_UNARY(MH_INNER1) MH_BINARY(MH_INNER2) MH_TERNARY(MH_INNER3)
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

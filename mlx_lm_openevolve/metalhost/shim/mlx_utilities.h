// What a kernel of mx.fast.metal_kernel finds in front of it: MLX's names for types, bfloat
// versions of the math functions, limits and index helpers. Our own definitions of that interface.
#pragma once
#include "metal.h"

typedef bfloat bfloat16_t;
typedef half float16_t;
typedef half2 float16x2_t;

namespace metal {

#define MH_BFLOAT1(F) MH_INLINE bfloat F(bfloat x) { return bfloat(F(float(x))); }
#define MH_BFLOAT2(F) \
  MH_INLINE bfloat F(bfloat x, bfloat y) { return bfloat(F(float(x), float(y))); }
#define MH_BFLOAT3(F) \
  MH_INLINE bfloat F(bfloat x, bfloat y, bfloat z) { return bfloat(F(float(x), float(y), float(z))); }
#define MH_BFLOAT_ALL                                                                          \
  MH_BFLOAT1(abs) MH_BFLOAT1(acos) MH_BFLOAT1(acosh) MH_BFLOAT1(asin) MH_BFLOAT1(asinh)        \
  MH_BFLOAT1(atan) MH_BFLOAT1(atanh) MH_BFLOAT1(ceil) MH_BFLOAT1(cos) MH_BFLOAT1(cosh)         \
  MH_BFLOAT1(cospi) MH_BFLOAT1(exp) MH_BFLOAT1(exp2) MH_BFLOAT1(exp10) MH_BFLOAT1(fabs)        \
  MH_BFLOAT1(floor) MH_BFLOAT1(fract) MH_BFLOAT1(log) MH_BFLOAT1(log2) MH_BFLOAT1(log10)       \
  MH_BFLOAT1(rint) MH_BFLOAT1(round) MH_BFLOAT1(rsqrt) MH_BFLOAT1(sin) MH_BFLOAT1(sinh)        \
  MH_BFLOAT1(sinpi) MH_BFLOAT1(sqrt) MH_BFLOAT1(tan) MH_BFLOAT1(tanh) MH_BFLOAT1(tanpi)        \
  MH_BFLOAT1(trunc) MH_BFLOAT1(saturate) MH_BFLOAT2(atan2) MH_BFLOAT2(copysign)                \
  MH_BFLOAT2(divide) MH_BFLOAT2(fdim) MH_BFLOAT2(fmax) MH_BFLOAT2(fmin) MH_BFLOAT2(fmod)       \
  MH_BFLOAT2(nextafter) MH_BFLOAT2(pow) MH_BFLOAT2(powr) MH_BFLOAT3(fma) MH_BFLOAT3(fmax3)     \
  MH_BFLOAT3(fmin3) MH_BFLOAT3(fmedian3)
MH_BFLOAT_ALL
namespace fast { MH_BFLOAT_ALL }
namespace precise { MH_BFLOAT_ALL }
MH_BFLOAT2(min) MH_BFLOAT2(max) MH_BFLOAT3(clamp) MH_BFLOAT3(min3) MH_BFLOAT3(max3)
MH_BFLOAT3(median3)
MH_INLINE bfloat ldexp(bfloat x, int k) { return bfloat(ldexp(float(x), k)); }
MH_INLINE bool isnan(bfloat x) { return isnan(float(x)); }
MH_INLINE bool isinf(bfloat x) { return isinf(float(x)); }
MH_INLINE bool isfinite(bfloat x) { return isfinite(float(x)); }
MH_INLINE bool isnormal(bfloat x) { return isnormal(float(x)); }
MH_INLINE bool signbit(bfloat x) { return signbit(float(x)); }
#undef MH_BFLOAT1
#undef MH_BFLOAT2
#undef MH_BFLOAT3
#undef MH_BFLOAT_ALL

}  // namespace metal

MH_INLINE uint16_t bfloat16_to_uint16(const bfloat x) { return as_type<uint16_t>(x); }
MH_INLINE bfloat uint16_to_bfloat16(const uint16_t x) { return as_type<bfloat>(x); }

// Largest and smallest values, with infinities and without.
template <class T> struct Limits {
  static constexpr T max = metal::numeric_limits<T>::max();
  static constexpr T min = metal::numeric_limits<T>::min();
  static constexpr T finite_max = max;
  static constexpr T finite_min = min;
};
template <class T> struct MhFloatLimits {
  static constexpr T max = metal::numeric_limits<T>::infinity();
  static constexpr T min = -metal::numeric_limits<T>::infinity();
  static constexpr T finite_max = metal::numeric_limits<T>::max();
  static constexpr T finite_min = metal::numeric_limits<T>::lowest();
};
template <> struct Limits<float> : MhFloatLimits<float> {};
template <> struct Limits<half> : MhFloatLimits<half> {};
template <> struct Limits<bfloat> : MhFloatLimits<bfloat> {};

template <class U> struct WorkPerThread {
  static constexpr int n = 8 / sizeof(U);
};

#define MLX_MTL_PRAGMA_UNROLL _Pragma("clang loop unroll(full)")
#define MTL_CONST constant

// The element that a linear index stands for, as an offset by strides (last axis fastest).
template <class I = int64_t>
METAL_FUNC I elem_to_loc(I elem, constant const int* shape, constant const int64_t* strides,
                         int ndim) {
  I at = 0;
  for (int axis = ndim; axis-- > 0 && elem > 0;) {
    at += elem % shape[axis] * I(strides[axis]);
    elem /= shape[axis];
  }
  return at;
}
template <class I = int64_t>
METAL_FUNC I elem_to_loc(uint3 elem, constant const int* shape, constant const int64_t* strides,
                         int ndim) {
  I at = I(elem.x) * I(strides[ndim - 1]) + I(elem.y) * I(strides[ndim - 2]);
  uint rest = elem.z;
  for (int axis = ndim - 2; axis-- > 0;) {
    at += I(rest % shape[axis]) * I(strides[axis]);
    rest /= shape[axis];
  }
  return at;
}
template <class I = int64_t>
METAL_FUNC I elem_to_loc_1(uint elem, constant const int64_t& stride) {
  return I(elem) * I(stride);
}
template <class I = int64_t>
METAL_FUNC I elem_to_loc_2(uint2 elem, constant const int64_t* strides) {
  return I(elem.x) * I(strides[1]) + I(elem.y) * I(strides[0]);
}
template <class I = int64_t>
METAL_FUNC I elem_to_loc_3(uint3 elem, constant const int64_t* strides) {
  return I(elem.x) * I(strides[2]) + I(elem.y) * I(strides[1]) + I(elem.z) * I(strides[0]);
}

METAL_FUNC int64_t ceildiv(int64_t n, int64_t m) { return (n + m - 1) / m; }
METAL_FUNC uint ceildiv(uint n, uint m) { return (n + m - 1) / m; }
METAL_FUNC int ceildiv(int n, int m) { return (n + m - 1) / m; }

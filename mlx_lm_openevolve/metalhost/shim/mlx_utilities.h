// What a kernel of mx.fast.metal_kernel meets in front of it: the interface of MLX 0.32's utils.h
// and of the headers that it includes, defined anew. A name that is missing there is missing here.
#pragma once
#include "metal.h"
#include "mlx_macros.h"

using namespace metal;

typedef bfloat bfloat16_t;
typedef half float16_t;

MH_INLINE uint16_t bfloat16_to_uint16(const bfloat16_t x) { return as_type<uint16_t>(x); }
MH_INLINE bfloat16_t uint16_to_bfloat16(const uint16_t x) { return as_type<bfloat16_t>(x); }

constant constexpr int MAX_REDUCE_SPECIALIZED_DIMS = 4;
constant constexpr int REDUCE_N_READS = 4, REDUCE_N_WRITES = 4;
constant constexpr int SOFTMAX_N_READS = 4, RMS_N_READS = 4, CROSS_ENTROPY_N_READS = 4;
constant constexpr int RMS_LOOPED_LIMIT = 4096;

// --- bfloat math: results are rounded to bfloat --------------------------------------------------
namespace metal {
#define MH_BFLOAT1(F) MH_INLINE bfloat F(bfloat x) { return bfloat(F(float(x))); }
#define MH_BFLOAT2(F) \
  MH_INLINE bfloat F(bfloat x, bfloat y) { return bfloat(F(float(x), float(y))); }
#define MH_BFLOAT3(F) \
  MH_INLINE bfloat F(bfloat x, bfloat y, bfloat z) { return bfloat(F(float(x), float(y), float(z))); }
#define MH_BFLOAT_ALL                                                                          \
  MH_UNARY(MH_BFLOAT1) MH_BINARY(MH_BFLOAT2) MH_TERNARY(MH_BFLOAT3)                            \
  MH_BFLOAT1(abs) MH_BFLOAT2(fdim)                                                             \
  MH_INLINE bfloat ldexp(bfloat x, int k) { return bfloat(ldexp(float(x), k)); }               \
  MH_INLINE bfloat frexp(bfloat x, thread int& k) { return bfloat(frexp(float(x), k)); }
MH_BFLOAT_ALL
MH_BFLOAT2(max) MH_BFLOAT2(min) MH_BFLOAT3(max3) MH_BFLOAT3(median3) MH_BFLOAT3(min3)
namespace fast {
using metal::max, metal::max3, metal::median3, metal::min, metal::min3;
MH_BFLOAT_ALL
}  // namespace fast
namespace precise {
using metal::max, metal::max3, metal::median3, metal::min, metal::min3;
MH_BFLOAT_ALL
}  // namespace precise
#undef MH_BFLOAT_ALL
#undef MH_BFLOAT1
#undef MH_BFLOAT2
#undef MH_BFLOAT3
// What MLX has no overload for takes a bfloat as the float that it converts to.
#define MH_AS_FLOAT(R, F) MH_INLINE R F(bfloat x) { return F(float(x)); }
MH_AS_FLOAT(bool, isnan) MH_AS_FLOAT(bool, isinf) MH_AS_FLOAT(bool, isfinite)
MH_AS_FLOAT(bool, isnormal) MH_AS_FLOAT(bool, signbit) MH_AS_FLOAT(float, saturate)
MH_AS_FLOAT(float, sign)
#undef MH_AS_FLOAT
MH_INLINE float copysign(bfloat x, bfloat y) { return copysign(float(x), float(y)); }
MH_INLINE float step(bfloat x, bfloat y) { return step(float(x), float(y)); }
MH_INLINE float clamp(bfloat x, bfloat lo, bfloat hi) { return clamp(float(x), float(lo), float(hi)); }
MH_INLINE float mix(bfloat x, bfloat y, bfloat a) { return mix(float(x), float(y), float(a)); }
}  // namespace metal

// --- complex numbers -----------------------------------------------------------------------------
template <typename T> struct complex_t;
template <typename T> constant constexpr bool is_complex_v = false;
template <typename T> constant constexpr bool is_complex_v<complex_t<T>> = true;
template <typename From, typename To>
constant constexpr bool is_lane_convertible_v =
    is_convertible_v<From, To> || (is_same_v<To, bfloat> && is_convertible_v<From, float>) ||
    (is_same_v<From, bfloat> && is_convertible_v<float, To>);

namespace mh {
template <typename U, typename T>
using Real = enable_if_t<!is_complex_v<U> && is_lane_convertible_v<U, T>, bool>;
}

template <typename T> struct complex_t {
  using value_type = T;
  T real, imag;

  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T re, T im) : real(re), imag(im) {}
  template <typename U, mh::Real<U, T> = true>
  constexpr complex_t(U x) : real(static_cast<T>(x)), imag(0) {}
  template <typename U, enable_if_t<!is_same_v<U, T> && is_lane_convertible_v<U, T>, bool> = true>
  constexpr complex_t(complex_t<U> x) : real(static_cast<T>(x.real)), imag(static_cast<T>(x.imag)) {}
  constexpr complex_t(mh::DeducedVec<T, 2> v) : real(v.x), imag(v.y) {}
  constexpr operator mh::DeducedVec<T, 2>() const { return mh::DeducedVec<T, 2>{real, imag}; }
  template <typename U, enable_if_t<!is_complex_v<U> && is_lane_convertible_v<T, U>, bool> = true>
  constexpr operator U() const {
    return static_cast<U>(real);
  }
};
using complex32_t = complex_t<half>;
using complex64_t = complex_t<float>;

template <typename T> constexpr complex_t<T> operator-(complex_t<T> x) { return {-x.real, -x.imag}; }
template <typename T> constexpr bool operator==(complex_t<T> a, complex_t<T> b) {
  return a.real == b.real && a.imag == b.imag;
}
// Ordered by the real part, then by the imaginary one.
#define MH_COMPARE(OP, STRICT)                                                     \
  template <typename T> constexpr bool operator OP(complex_t<T> a, complex_t<T> b) { \
    return a.real == b.real ? a.imag OP b.imag : a.real STRICT b.real;             \
  }
MH_COMPARE(<, <) MH_COMPARE(<=, <) MH_COMPARE(>, >) MH_COMPARE(>=, >)
#undef MH_COMPARE
#define MH_SUM(OP)                                                                   \
  template <typename T> constexpr complex_t<T> operator OP(complex_t<T> a, complex_t<T> b) { \
    return {T(a.real OP b.real), T(a.imag OP b.imag)};                               \
  }                                                                                  \
  template <typename T, typename U, mh::Real<U, T> = true>                           \
  constexpr complex_t<T> operator OP(U a, complex_t<T> b) {                          \
    return complex_t<T>(static_cast<T>(a)) OP b;                                     \
  }                                                                                  \
  template <typename T, typename U, mh::Real<U, T> = true>                           \
  constexpr complex_t<T> operator OP(complex_t<T> a, U b) {                          \
    return a OP complex_t<T>(static_cast<T>(b));                                     \
  }
MH_SUM(+) MH_SUM(-)
#undef MH_SUM
#define MH_ADD(SPACE)                                                                       \
  template <typename T>                                                                     \
  constexpr SPACE complex_t<T>& operator+=(SPACE complex_t<T>& a, complex_t<T> b) {         \
    a.real += b.real;                                                                       \
    a.imag += b.imag;                                                                       \
    return a;                                                                               \
  }
MH_ADD(thread) MH_ADD(threadgroup) MH_ADD(device)
#undef MH_ADD
template <typename T> constexpr complex_t<T> operator*(complex_t<T> a, complex_t<T> b) {
  return {T(a.real * b.real - a.imag * b.imag), T(a.real * b.imag + a.imag * b.real)};
}
template <typename T> constexpr complex_t<T> operator/(complex_t<T> a, complex_t<T> b) {
  // Scaled by the larger part of the divisor (R. L. Smith's method).
  const float p = a.real, q = a.imag, r = b.real, s = b.imag;
  const bool wide = (r < 0 ? -r : r) >= (s < 0 ? -s : s);
  const float t = wide ? s / r : r / s, d = wide ? r + s * t : s + r * t;
  return {static_cast<T>((wide ? p + q * t : p * t + q) / d),
          static_cast<T>((wide ? q - p * t : q * t - p) / d)};
}
template <typename T, typename U, mh::Real<U, T> = true>
constexpr complex_t<T> operator/(U a, complex_t<T> b) {
  return complex_t<T>(a) / b;
}
template <typename T> constexpr complex_t<T> operator%(complex_t<T> a, complex_t<T> b) {
  T re = a.real - b.real * static_cast<int64_t>(a.real / b.real);
  T im = a.imag - b.imag * static_cast<int64_t>(a.imag / b.imag);
  if (re != T(0) && (re < T(0)) != (b.real < T(0))) re += b.real;
  if (im != T(0) && (im < T(0)) != (b.imag < T(0))) im += b.imag;
  return {re, im};
}

namespace mlx { using metal::os_log; }

// --- types and limits ----------------------------------------------------------------------------
template <typename U> struct WorkPerThread {
  static_assert(sizeof(U) <= 8, "Type too large");
  static constexpr constant int n = 8 / sizeof(U);
};

// Largest and smallest values, with infinities and without.
template <typename U> struct Limits {
  static constexpr constant U max = numeric_limits<U>::max(), min = numeric_limits<U>::min();
  static constexpr constant U finite_max = max, finite_min = min;
};
#define MH_FLOAT_LIMITS(T)                                                    \
  template <> struct Limits<T> {                                              \
    static constexpr constant T max = numeric_limits<T>::infinity();          \
    static constexpr constant T min = -numeric_limits<T>::infinity();         \
    static constexpr constant T finite_max = numeric_limits<T>::max();        \
    static constexpr constant T finite_min = -numeric_limits<T>::max();       \
  };
MH_FLOAT_LIMITS(half) MH_FLOAT_LIMITS(float) MH_FLOAT_LIMITS(bfloat)
#undef MH_FLOAT_LIMITS
template <> struct Limits<bool> {
  static constexpr constant bool max = true, min = false;
};
template <typename T> struct Limits<complex_t<T>> {
  static constexpr constant complex_t<T> max = complex_t<T>(Limits<T>::max, Limits<T>::max);
  static constexpr constant complex_t<T> min = complex_t<T>(Limits<T>::min, Limits<T>::min);
};

template <bool condition, typename T, typename U> struct ConditionalType { using type = U; };
template <typename T, typename U> struct ConditionalType<true, T, U> { using type = T; };

template <typename U, typename T> inline U cast_to(T x) { return static_cast<U>(x); }
// NaN is true, both zeros are false, whatever the math mode.
template <> inline bool cast_to<bool, float>(float x) { return as_type<uint>(x) << 1 != 0; }
template <> inline bool cast_to<bool, bfloat>(bfloat x) { return (as_type<ushort>(x) & 0x7fff) != 0; }
template <> inline bool cast_to<bool, complex64_t>(complex64_t x) {
  return cast_to<bool>(x.real) || cast_to<bool>(x.imag);
}

// --- indices: the element that a linear index stands for, as an offset by strides ----------------
template <typename I = int64_t>
METAL_FUNC I elem_to_loc(I elem, constant const int* shape, constant const int64_t* strides,
                         int ndim) {
  I at = 0;
  for (int axis = ndim; axis-- > 0 && elem > 0;) {
    at += elem % shape[axis] * I(strides[axis]);
    elem /= shape[axis];
  }
  return at;
}
namespace mh {
// x and y are positions on the last two axes, z counts the others.
template <typename I>
METAL_FUNC I offset(uint3 elem, constant const int* shape, constant const int64_t* strides, int ndim) {
  I at = I(elem.x) * I(strides[ndim - 1]) + I(elem.y) * I(strides[ndim - 2]);
  uint rest = elem.z;
  for (int axis = ndim - 2; axis-- > 0;) {
    at += I(rest % shape[axis]) * I(strides[axis]);
    rest /= shape[axis];
  }
  return at;
}
}  // namespace mh
template <typename I = int64_t>
METAL_FUNC I elem_to_loc(uint3 elem, constant const int* shape, constant const int64_t* strides,
                         int ndim) {
  return mh::offset<I>(elem, shape, strides, ndim);
}
template <typename I = int64_t>
METAL_FUNC vec<I, 2> elem_to_loc_2_nd(uint3 elem, constant const int* shape,
                                      constant const int64_t* a_strides,
                                      constant const int64_t* b_strides, int ndim) {
  return vec<I, 2>{mh::offset<I>(elem, shape, a_strides, ndim),
                   mh::offset<I>(elem, shape, b_strides, ndim)};
}
template <typename I = int64_t>
METAL_FUNC vec<I, 3> elem_to_loc_3_nd(uint3 elem, constant const int* shape,
                                      constant const int64_t* a_strides,
                                      constant const int64_t* b_strides,
                                      constant const int64_t* c_strides, int ndim) {
  return vec<I, 3>{mh::offset<I>(elem, shape, a_strides, ndim),
                   mh::offset<I>(elem, shape, b_strides, ndim),
                   mh::offset<I>(elem, shape, c_strides, ndim)};
}
template <typename I = int64_t>
METAL_FUNC I elem_to_loc_1(uint elem, constant const int64_t& stride) {
  return elem * I(stride);
}
template <typename I = int64_t>
METAL_FUNC I elem_to_loc_2(uint2 elem, constant const int64_t* strides) {
  return elem.x * I(strides[1]) + elem.y * I(strides[0]);
}
template <typename I = int64_t>
METAL_FUNC I elem_to_loc_3(uint3 elem, constant const int64_t* strides) {
  return elem.x * I(strides[2]) + elem.y * I(strides[1]) + elem.z * I(strides[0]);
}

// Walks elements along the last of at most DIM axes and keeps the offset of the current one.
template <int DIM, typename OffsetT = size_t, bool General = true> struct LoopedElemToLoc {
  int dim;
  OffsetT offset{0};
  OffsetT elem{0};
  LoopedElemToLoc(int dim) : dim(dim) {}
  void next(const constant int* shape, const constant int64_t* strides) { next(1, shape, strides); }
  void next(int n, const constant int* shape, const constant int64_t* strides) {
    if (dim == 0) return;
    elem += n;
    offset = elem_to_loc<OffsetT>(elem, shape, strides, dim);
  }
  OffsetT location() { return offset; }
};

// --- arithmetic ----------------------------------------------------------------------------------
template <typename T, typename U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }

inline float log1p(float x) { return __builtin_log1pf(x); }
inline bfloat16_t log1p(bfloat16_t x) { return bfloat16_t(__builtin_log1pf(float(x))); }
inline complex64_t log1p(complex64_t z) {
  const float x = z.real, y = z.imag;
  return {0.5f * __builtin_log1pf(x * (2 + x) + y * y), __builtin_atan2f(y, x + 1)};
}
inline float hypot(float x, float y) { return __builtin_hypotf(x, y); }

// --- shuffles of types that Metal's own do not take ----------------------------------------------
#define MH_SHUFFLE(NAME)                                                                      \
  inline uint64_t NAME(uint64_t x, uint16_t k) {                                              \
    return as_type<uint64_t>(metal::NAME(as_type<uint2>(x), k));                              \
  }                                                                                           \
  inline int64_t NAME(int64_t x, uint16_t k) { return int64_t(NAME(uint64_t(x), k)); }        \
  inline bool NAME(bool x, uint16_t k) { return metal::NAME(uint(x), k) != 0; }               \
  inline complex64_t NAME(complex64_t x, uint16_t k) {                                        \
    return complex64_t(metal::NAME(x.real, k), metal::NAME(x.imag, k));                       \
  }
MH_SHUFFLE(simd_shuffle) MH_SHUFFLE(simd_shuffle_up) MH_SHUFFLE(simd_shuffle_down)
#undef MH_SHUFFLE
inline uint64_t simd_shuffle_and_fill_up(uint64_t x, uint64_t fill, uint16_t k) {
  return as_type<uint64_t>(metal::simd_shuffle_and_fill_up(as_type<uint2>(x), as_type<uint2>(fill), k));
}
inline int64_t simd_shuffle_and_fill_up(int64_t x, int64_t fill, uint16_t k) {
  return int64_t(simd_shuffle_and_fill_up(uint64_t(x), uint64_t(fill), k));
}
inline bool simd_shuffle_and_fill_up(bool x, bool fill, uint16_t k) {
  return metal::simd_shuffle_and_fill_up(uint(x), uint(fill), k) != 0;
}
inline complex64_t simd_shuffle_and_fill_up(complex64_t x, complex64_t fill, uint16_t k) {
  return complex64_t(metal::simd_shuffle_and_fill_up(x.real, fill.real, k),
                     metal::simd_shuffle_and_fill_up(x.imag, fill.imag, k));
}

// Which group of rows a tile of BM rows belongs to, where each group begins at a tile of its own:
// the group, the tile's first row and its rows. False behind the last tile.
template <int BM>
METAL_FUNC bool schedule_row_tile(const device int32_t* offsets, const int num_groups, const int M,
                                  const int tile, const uint simd_lane_id, thread int& row,
                                  thread int& group, thread short& rows) {
  int before = 0;
  for (int base = 0; base < num_groups; base += 32) {  // a group each lane
    const int g = base + int(simd_lane_id);
    const int begin = g < num_groups ? offsets[g] : M;
    const int end = g + 1 < num_groups ? offsets[g + 1] : M;
    const int tiles = (end - begin + BM - 1) / BM;
    const int through = before + simd_prefix_inclusive_sum(tiles);
    const ushort owner = ushort(simd_sum(int(through <= tile)));
    if (owner < 32) {
      group = base + owner;
      row = simd_shuffle(begin, owner) + (tile - simd_shuffle(through - tiles, owner)) * BM;
      rows = short(min(BM, simd_shuffle(end, owner) - row));
      return true;
    }
    before = simd_shuffle(through, ushort(31));
  }
  return false;
}

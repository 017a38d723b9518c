// Geometric functions, packing into integers, and matrices of a single thread.
#pragma once
#include "math.h"

namespace metal {

// --- geometry ------------------------------------------------------------------------------------
#define MH_GEOMETRY(V, T, N, _)                                                          \
  MH_INLINE T dot(V a, V b) { T s = a[0] * b[0]; for (int i = 1; i < N; ++i) s += a[i] * b[i]; return s; } \
  MH_INLINE T length_squared(V a) { return dot(a, a); }                                  \
  MH_INLINE T length(V a) { return sqrt(dot(a, a)); }                                    \
  MH_INLINE T distance(V a, V b) { return length(a - b); }                               \
  MH_INLINE T distance_squared(V a, V b) { return dot(a - b, a - b); }                   \
  MH_INLINE V normalize(V a) { return a * rsqrt(dot(a, a)); }                            \
  MH_INLINE V faceforward(V n, V i, V ref) { return dot(ref, i) < T(0) ? n : -n; }       \
  MH_INLINE V reflect(V i, V n) { return i - T(2) * dot(n, i) * n; }                     \
  MH_INLINE V refract(V i, V n, T eta) {                                                 \
    const T d = dot(n, i), k = T(1) - eta * eta * (T(1) - d * d);                        \
    return k < T(0) ? V(T(0)) : eta * i - (eta * d + T(sqrt(float(k)))) * n;             \
  }
MH_EACH_VECTOR(MH_GEOMETRY, float, 0) MH_EACH_VECTOR(MH_GEOMETRY, half, 0)
#undef MH_GEOMETRY
#define MH_CROSS(V)                                                                            \
  MH_INLINE V cross(V a, V b) {                                                                \
    return V{a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]}; \
  }
MH_CROSS(float3) MH_CROSS(half3)
#undef MH_CROSS

// --- packing -------------------------------------------------------------------------------------
#define MH_PACKING(NAME, N, BITS, LOW, MAX)                                     \
  MH_INLINE float##N unpack_##NAME##_to_float(uint x) {                         \
    float##N r;                                                                 \
    for (int i = 0; i < N; ++i) {                                               \
      const uint part = x >> (BITS * i) << (32 - BITS);                         \
      r[i] = max(LOW, (LOW < 0 ? float(int(part) >> (32 - BITS)) : float(part >> (32 - BITS))) / MAX); \
    }                                                                           \
    return r;                                                                   \
  }                                                                             \
  MH_INLINE half##N unpack_##NAME##_to_half(uint x) {                           \
    return mh::make<half##N>(unpack_##NAME##_to_float(x));                      \
  }                                                                             \
  MH_INLINE uint pack_float_to_##NAME(float##N v) {                             \
    uint r = 0;                                                                 \
    for (int i = 0; i < N; ++i) {                                               \
      const float s = clamp(float(v[i]), LOW, 1.0f) * MAX;                      \
      r |= (uint(int(rint(s))) & uint((1ul << BITS) - 1)) << (BITS * i);        \
    }                                                                           \
    return r;                                                                   \
  }                                                                             \
  MH_INLINE uint pack_half_to_##NAME(half##N v) {                               \
    return pack_float_to_##NAME(mh::make<float##N>(v));                         \
  }
MH_PACKING(unorm4x8, 4, 8, 0.0f, 255.0f)
MH_PACKING(snorm4x8, 4, 8, -1.0f, 127.0f)
MH_PACKING(unorm2x16, 2, 16, 0.0f, 65535.0f)
MH_PACKING(snorm2x16, 2, 16, -1.0f, 32767.0f)
#undef MH_PACKING

// --- small matrices, by columns --------------------------------------------------------------------
template <class T, int C, int R> struct matrix {
  typedef typename mh::VecOf<T, R>::type column;
  column columns[C];
  matrix() = default;
  MH_INLINE explicit matrix(T diagonal) {
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) columns[c][r] = c == r ? diagonal : T(0);
  }
  template <class... A, class = enable_if_t<sizeof...(A) == C && (C > 1) &&
                                            ((mh::Shape<A>::size == R) && ...)>>
  MH_INLINE matrix(A... a) : columns{column(a)...} {}
  template <class... A, class = enable_if_t<sizeof...(A) == C * R &&
                                            ((mh::Shape<A>::size == 1) && ...)>, class = void>
  MH_INLINE matrix(A... a) {
    const T values[] = {T(a)...};
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) columns[c][r] = values[c * R + r];
  }
  template <class U> MH_INLINE explicit matrix(const thread matrix<U, C, R>& other) {
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) columns[c][r] = T(other.columns[c][r]);
  }
  MH_INLINE column& operator[](int c) { return columns[c]; }
  MH_INLINE const column& operator[](int c) const { return columns[c]; }
  friend MH_INLINE column operator*(const matrix& m, typename mh::VecOf<T, C>::type v) {
    column s = m.columns[0] * T(v[0]);
    for (int c = 1; c < C; ++c) s += m.columns[c] * T(v[c]);
    return s;
  }
  friend MH_INLINE typename mh::VecOf<T, C>::type operator*(column v, const matrix& m) {
    typename mh::VecOf<T, C>::type s;
    for (int c = 0; c < C; ++c) s[c] = dot(v, m.columns[c]);
    return s;
  }
#define MH_ELEMENTWISE(OP, OTHER, RIGHT)                                    \
  friend MH_INLINE matrix operator OP(const matrix& a, OTHER b) {            \
    matrix m;                                                               \
    for (int c = 0; c < C; ++c) m.columns[c] = a.columns[c] OP RIGHT;       \
    return m;                                                               \
  }
  MH_ELEMENTWISE(+, const matrix&, b.columns[c])
  MH_ELEMENTWISE(-, const matrix&, b.columns[c])
  MH_ELEMENTWISE(*, T, b)
#undef MH_ELEMENTWISE
  friend MH_INLINE matrix operator*(T s, const matrix& a) { return a * s; }
};
template <class T, int K, int R, int C>
MH_INLINE matrix<T, C, R> operator*(const thread matrix<T, K, R>& a, const thread matrix<T, C, K>& b) {
  matrix<T, C, R> m;
  for (int c = 0; c < C; ++c) m.columns[c] = a * b.columns[c];
  return m;
}
template <class T> MH_INLINE T determinant(const thread matrix<T, 2, 2>& m) {
  return m[0][0] * m[1][1] - m[1][0] * m[0][1];
}
template <class T> MH_INLINE T determinant(const thread matrix<T, 3, 3>& m) {
  return dot(m[0], cross(m[1], m[2]));
}
template <class T> MH_INLINE T determinant(const thread matrix<T, 4, 4>& m) {
  T sum = 0;
  for (int skip = 0; skip < 4; ++skip) {  // along the first row
    matrix<T, 3, 3> rest;
    for (int c = 0, k = 0; c < 4; ++c) {
      if (c == skip) continue;
      for (int r = 0; r < 3; ++r) rest[k][r] = m[c][r + 1];
      ++k;
    }
    sum += (skip & 1 ? -m[skip][0] : m[skip][0]) * determinant(rest);
  }
  return sum;
}
template <class T, int C, int R> MH_INLINE matrix<T, R, C> transpose(const thread matrix<T, C, R>& a) {
  matrix<T, R, C> m;
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) m.columns[r][c] = a.columns[c][r];
  return m;
}

}  // namespace metal

#define MH_MATRICES(T, C)                                                                       \
  typedef metal::matrix<T, C, 2> T##C##x2;                                                      \
  typedef metal::matrix<T, C, 3> T##C##x3;                                                      \
  typedef metal::matrix<T, C, 4> T##C##x4;
MH_MATRICES(float, 2) MH_MATRICES(float, 3) MH_MATRICES(float, 4)
MH_MATRICES(half, 2) MH_MATRICES(half, 3) MH_MATRICES(half, 4)
#undef MH_MATRICES

// Matrices of 8x8 elements that a simdgroup holds together: their loads, stores and products.
#pragma once
#include "simd.h"

namespace mh {

// The lanes of a simdgroup hold an 8x8 matrix as two neighbours of a row each.
MH_INLINE constexpr uint matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
MH_INLINE constexpr uint matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <class A, class B, class C> struct Fragments {
  A a[2];
  B b[2];
  C c[2];
};
template <class D> struct Pair {
  D d[2];
};
template <class D, class A, class B, class C> MH_UNCHECKED void matrix_product(MhSlots* s) {
  float a[8][8], b[8][8];
  for (uint k = 0; k < MH_LANES; ++k) {
    const Fragments<A, B, C>& f = slot_in<Fragments<A, B, C>>(s, k);
    for (uint i = 0; i < 2; ++i) {
      a[matrix_row(k)][matrix_column(k) + i] = float(f.a[i]);
      b[matrix_row(k)][matrix_column(k) + i] = float(f.b[i]);
    }
  }
  for (uint k = 0; k < MH_LANES; ++k) {
    const Fragments<A, B, C>& f = slot_in<Fragments<A, B, C>>(s, k);
    const uint row = matrix_row(k), column = matrix_column(k);
    for (uint i = 0; i < 2; ++i) {
      float sum = float(f.c[i]);
      for (uint j = 0; j < 8; ++j) sum += a[row][j] * b[j][column + i];
      slot_out<Pair<D>>(s, k).d[i] = D(sum);
    }
  }
}

}  // namespace mh

namespace metal {

template <class T, int C, int R> struct simdgroup_matrix {
  static_assert(C == 8 && R == 8, "simdgroup matrices are 8x8");
  static_assert(is_floating_point<T>::value, "simdgroup matrices hold half, bfloat or float");
  typedef typename mh::VecOf<T, 2>::type storage_type;
  storage_type elements;
  simdgroup_matrix() = default;
  MH_INLINE explicit simdgroup_matrix(T diagonal) {
    const uint at = mh::lane();
    for (uint i = 0; i < 2; ++i) {
      elements[i] = mh::matrix_row(at) == mh::matrix_column(at) + i ? diagonal : T(0);
    }
  }
  MH_INLINE thread storage_type& thread_elements() { return elements; }
  MH_INLINE const thread storage_type& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int C, int R = C>
MH_INLINE simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> m;
  m.elements = value;
  return m;
}

template <class T, int C, int R = C>
MH_INLINE simdgroup_matrix<T, C, R> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, C, R>(value);
}

#define MH_MATRIX_MEMORY(SPACE)                                                                 \
  template <class T, int C, int R>                                                              \
  MH_INLINE void simdgroup_load(                                                                \
      thread simdgroup_matrix<T, C, R>& m, const SPACE T* from, ulong stride = C,               \
      ulong2 origin = ulong2{0, 0}, bool transposed = false) {     \
    mh_simdgroup_barrier(0);                                                              \
    const uint at = mh::lane();                                                                 \
    for (uint i = 0; i < 2; ++i) {                                                              \
      const ulong row = mh::matrix_row(at), column = mh::matrix_column(at) + i;                 \
      m.elements[i] = transposed ? from[(origin[0] + row) + (origin[1] + column) * stride]      \
                                 : from[(origin[0] + column) + (origin[1] + row) * stride];     \
    }                                                                                           \
  }                                                                                             \
  template <class T, int C, int R>                                                              \
  MH_INLINE void simdgroup_store(                                                               \
      simdgroup_matrix<T, C, R> m, SPACE T* to, ulong stride = C,                               \
      ulong2 origin = ulong2{0, 0}, bool transposed = false) {     \
    mh_simdgroup_barrier(0);                                                              \
    const uint at = mh::lane();                                                                 \
    for (uint i = 0; i < 2; ++i) {                                                              \
      const ulong row = mh::matrix_row(at), column = mh::matrix_column(at) + i;                 \
      if (transposed) to[(origin[0] + row) + (origin[1] + column) * stride] = m.elements[i];    \
      else to[(origin[0] + column) + (origin[1] + row) * stride] = m.elements[i];               \
    }                                                                                           \
  }
MH_MATRIX_MEMORY(device)
MH_MATRIX_MEMORY(threadgroup)
#undef MH_MATRIX_MEMORY

template <class D, class A, class B, class C>
MH_INLINE void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                             thread simdgroup_matrix<A, 8, 8>& a,
                                             thread simdgroup_matrix<B, 8, 8>& b,
                                             thread simdgroup_matrix<C, 8, 8>& c) {
  const mh::Fragments<A, B, C> f = {{A(a.elements[0]), A(a.elements[1])},
                                    {B(b.elements[0]), B(b.elements[1])},
                                    {C(c.elements[0]), C(c.elements[1])}};
  const mh::Pair<D> r = mh::collective<mh::Pair<D>>(
      "simdgroup_multiply_accumulate", f, &mh::matrix_product<D, A, B, C>, 32, 1024);
  d.elements[0] = r.d[0];
  d.elements[1] = r.d[1];
}
template <class D, class A, class B>
MH_INLINE void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                  thread simdgroup_matrix<A, 8, 8>& a,
                                  thread simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_matrix<D, 8, 8> zero;
  zero.elements = D(0);
  simdgroup_multiply_accumulate(d, a, b, zero);
}
template <class T>
MH_INLINE simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8> a,
                                              simdgroup_matrix<T, 8, 8> b) {
  simdgroup_matrix<T, 8, 8> product;
  simdgroup_multiply(product, a, b);
  return product;
}

}  // namespace metal

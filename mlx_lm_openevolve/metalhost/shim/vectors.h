// Vector types: clang's extended vectors, which bring component access, swizzles and elementwise
// operators; vectors of bool are classes. The translator turns every construction of a vector
// (`float4(...)`) into mh::make and every C cast to one into mh::Cast.
#pragma once
#include "types.h"

namespace metal {
template <class T, int N> struct packed_vec;
}

namespace mh {

template <int N> struct Bools;
template <class T, int N> struct VecOf { typedef T type __attribute__((ext_vector_type(N))); };
template <int N> struct VecOf<bool, N> { typedef Bools<N> type; };

// Element type and length of a vector; a scalar has length 1.
template <class T> struct Shape {
  typedef T element;
  static constexpr int size = 1;
};
template <class T, int N> struct Shape<T __attribute__((ext_vector_type(N)))> {
  typedef T element;
  static constexpr int size = N;
};
template <class T, int N> struct Shape<metal::packed_vec<T, N>> {
  typedef T element;
  static constexpr int size = N;
};
template <int N> struct Shape<Bools<N>> {
  typedef bool element;
  static constexpr int size = N;
};
template <class T> using Plain = metal::decay_t<T>;

template <class V> MH_INLINE auto element(V v, int i) {
  if constexpr (Shape<V>::size == 1) return v; else return v[i];
}

// A scalar of 16 bits as another type; half and bfloat meet by way of float.
template <class T>
inline constexpr bool is_narrow = __is_same(Plain<T>, half) || __is_same(Plain<T>, bfloat);
template <class To, class From> MH_INLINE constexpr To scalar(From x) {
  if constexpr (is_narrow<To> && is_narrow<From>) return To(float(x));
  else return To(x);
}

template <class V, class A>
MH_INLINE void append(V& v, int& at, A a) {
  typedef typename Shape<V>::element E;
  if constexpr (Shape<A>::size == 1) {
    v[at++] = scalar<E>(a);
  } else {
    for (int i = 0; i < Shape<A>::size; ++i) v[at++] = scalar<E>(a[i]);
  }
}

// V(args...): one scalar for all components, one vector to convert, or parts in sequence.
template <class V, class... A>
MH_INLINE constexpr V make(A... a) {
  typedef typename Shape<V>::element E;
  constexpr int size = Shape<V>::size;
  if constexpr (size == 1) {
    static_assert(sizeof...(A) <= 1, "too many components");
    return V(a...);
  } else if constexpr (sizeof...(A) == 0) {
    return V{};
  } else if constexpr (sizeof...(A) == 1 && (Shape<A>::size * ...) == 1) {
    if constexpr (metal::is_same<E, bool>::value) return V(bool(a)...);
    else return V(scalar<E>(a)...);
  } else {
    constexpr int given = (Shape<A>::size + ...);
    static_assert(given == size, "the number of components does not match the vector");
    if constexpr (given == sizeof...(A)) {
      return V{scalar<E>(a)...};
    } else {
      V v{};
      int at = 0;
      (append(v, at, a), ...);
      return v;
    }
  }
}

template <class V> struct Cast {
  template <class A> friend MH_INLINE V operator->*(Cast, A a) { return make<V>(a); }
};

// To(args...) for a type that may be any: a scalar, a vector, a class.
template <class To, class... From> MH_INLINE constexpr To convert(From... x) {
  if constexpr ((Shape<To>::size > 1)) return make<To>(x...);
  else if constexpr (sizeof...(From) == 1) return scalar<To>(x...);
  else return To(x...);
}
template <class To> struct Convert {
  template <class From> friend MH_INLINE constexpr To operator->*(Convert, From x) {
    return convert<To>(x);
  }
};

// {args...} as an argument: it becomes what the parameter is.
template <class F> struct Braces {
  F make_it;
  template <class To> MH_INLINE constexpr operator To() const {
    return make_it(metal::type_identity<To>());
  }
};
template <class... A> MH_INLINE constexpr auto braces(A... a) {
  auto make_it = [=](auto to) __attribute__((always_inline, nodebug)) {
    typedef typename decltype(to)::type To;
    if constexpr ((Shape<To>::size > 1)) return make<To>(a...);
    else return To{a...};
  };
  return Braces<decltype(make_it)>{make_it};
}

#define MH_BOOLS(N, FIELDS, ...)                                                              \
  template <> struct alignas(N == 2 ? 2 : 4) Bools<N> {                                                               \
    bool FIELDS;                                                                              \
    Bools() = default;                                                                        \
    constexpr Bools(bool a) : Bools(a, N) {}                                                  \
    template <class T> MH_INLINE Bools(T __attribute__((ext_vector_type(N))) v) {             \
      for (int i = 0; i < N; ++i) (*this)[i] = v[i] != T(0);                                  \
    }                                                                                         \
    __VA_ARGS__                                                                               \
    MH_INLINE bool& operator[](int i) { return (&x)[i]; }                                     \
    MH_INLINE bool operator[](int i) const { return (&x)[i]; }                                \
    MH_INLINE Bools operator!() const {                                                       \
      Bools r;                                                                                \
      for (int i = 0; i < N; ++i) r[i] = !(*this)[i];                                         \
      return r;                                                                               \
    }                                                                                         \
    MH_BOOLS_OP(N, &) MH_BOOLS_OP(N, |) MH_BOOLS_OP(N, ^) MH_BOOLS_OP(N, &&)                  \
    MH_BOOLS_OP(N, ||) MH_BOOLS_OP(N, ==) MH_BOOLS_OP(N, !=)                                  \
  };
#define MH_BOOLS_OP(N, OP)                                                                    \
  friend MH_INLINE Bools<N> operator OP(Bools<N> a, Bools<N> b) {                             \
    Bools<N> r;                                                                               \
    for (int i = 0; i < N; ++i) r[i] = a[i] OP b[i];                                          \
    return r;                                                                                 \
  }
MH_BOOLS(2, x; bool y, constexpr Bools(bool a, int) : x(a), y(a) {}
         constexpr Bools(bool a, bool b) : x(a), y(b) {})
MH_BOOLS(3, x; bool y; bool z, constexpr Bools(bool a, int) : x(a), y(a), z(a) {}
         constexpr Bools(bool a, bool b, bool c) : x(a), y(b), z(c) {})
MH_BOOLS(4, x; bool y; bool z; bool w, constexpr Bools(bool a, int) : x(a), y(a), z(a), w(a) {}
         constexpr Bools(bool a, bool b, bool c, bool d) : x(a), y(b), z(c), w(d) {})
#undef MH_BOOLS
#undef MH_BOOLS_OP

}  // namespace mh

namespace metal {
template <class T, int N> using vec = typename mh::VecOf<T, N>::type;
}
namespace mh {
// The same but deducible from an argument; the translator names it in parameters and in alias
// templates. It is no class for bool: clang 22 miscompiles element stores to such vectors.
template <class T, int N> using DeducedVec = T __attribute__((ext_vector_type(N)));
}

#define MH_VECTORS(T)                       \
  typedef mh::VecOf<T, 2>::type T##2;       \
  typedef mh::VecOf<T, 3>::type T##3;       \
  typedef mh::VecOf<T, 4>::type T##4;
MH_VECTORS(bool) MH_VECTORS(char) MH_VECTORS(uchar) MH_VECTORS(short) MH_VECTORS(ushort)
MH_VECTORS(int) MH_VECTORS(uint) MH_VECTORS(long) MH_VECTORS(ulong) MH_VECTORS(half)
MH_VECTORS(bfloat) MH_VECTORS(float)
#undef MH_VECTORS

namespace metal {
// Packed vectors: aligned like one element.
template <class T, int N> struct mh_packed;
#define MH_PACKED_DATA(N, A, B)                                  \
  template <class T> struct mh_packed<T, N> {                    \
    union {                                                      \
      T data[N];                                                 \
      struct { T A; };                                           \
      struct { T B; };                                           \
    };                                                           \
  };
#define MH_COMMA ,
MH_PACKED_DATA(2, x MH_COMMA y, r MH_COMMA g)
MH_PACKED_DATA(3, x MH_COMMA y MH_COMMA z, r MH_COMMA g MH_COMMA b)
MH_PACKED_DATA(4, x MH_COMMA y MH_COMMA z MH_COMMA w, r MH_COMMA g MH_COMMA b MH_COMMA a)
#undef MH_PACKED_DATA
#undef MH_COMMA
template <class T, int N> struct packed_vec : mh_packed<T, N> {
  using mh_packed<T, N>::data;
  typedef typename mh::VecOf<T, N>::type full;
  packed_vec() = default;
  MH_INLINE packed_vec(full v) {
    for (int i = 0; i < N; ++i) data[i] = v[i];
  }
  template <class A, enable_if_t<mh::Shape<A>::size == 1, int> = 0>
  MH_INLINE packed_vec(A a) : packed_vec(mh::make<full>(a)) {}
  // A vector of other elements converts where that is written.
  template <class A, enable_if_t<(mh::Shape<A>::size > 1), int> = 0>
  MH_INLINE explicit packed_vec(A a) : packed_vec(mh::make<full>(a)) {}
  template <class... A, enable_if_t<(sizeof...(A) > 1), int> = 0>
  MH_INLINE packed_vec(A... a) : packed_vec(mh::make<full>(a...)) {}
  MH_INLINE operator full() const {
    full v;
    for (int i = 0; i < N; ++i) v[i] = data[i];
    return v;
  }
  MH_INLINE T& operator[](int i) { return data[i]; }
  MH_INLINE T operator[](int i) const { return data[i]; }
#define MH_PACKED_ASSIGN(OP) \
  MH_INLINE packed_vec& operator OP##=(full v) { return *this = packed_vec(full(*this) OP v); }
  MH_PACKED_ASSIGN(+) MH_PACKED_ASSIGN(-) MH_PACKED_ASSIGN(*) MH_PACKED_ASSIGN(/)
#undef MH_PACKED_ASSIGN
};
}  // namespace metal
#define MH_PACKED(T)                                                                    \
  typedef metal::packed_vec<T, 2> packed_##T##2;                                        \
  typedef metal::packed_vec<T, 3> packed_##T##3;                                        \
  typedef metal::packed_vec<T, 4> packed_##T##4;
MH_PACKED(char) MH_PACKED(uchar) MH_PACKED(short) MH_PACKED(ushort) MH_PACKED(int)
MH_PACKED(uint) MH_PACKED(long) MH_PACKED(ulong) MH_PACKED(half) MH_PACKED(bfloat) MH_PACKED(float)
#undef MH_PACKED

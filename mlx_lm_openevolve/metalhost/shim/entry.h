// How the generated mh_entry() hands a kernel its arguments: by the types of its parameters.
#pragma once
#include "simd.h"

namespace mh {

template <class F> struct Parameters;
template <class... A> struct Parameters<void (*)(A...)> {
  template <int I> using at = __type_pack_element<I, A...>;
};

template <class T> struct Pointee;
#define MH_POINTEE(SPACE, KIND)                                                    \
  template <class T> struct Pointee<SPACE T*> {                                    \
    typedef T type;                                                                \
    static constexpr int space = KIND;                                             \
    static constexpr bool constant_data = __is_const(T);                           \
    static MH_INLINE SPACE T* bind(void* p) { return (SPACE T*)p; }                \
  };                                                                               \
  template <class T> struct Pointee<SPACE T&> {                                    \
    typedef T type;                                                                \
    static constexpr int space = KIND;                                             \
    static constexpr bool constant_data = __is_const(T);                           \
    static MH_INLINE SPACE T& bind(void* p) { return *(SPACE T*)p; }               \
  };
MH_POINTEE(device, MH_DEVICE)
MH_POINTEE(constant, MH_CONSTANT)
MH_POINTEE(threadgroup, MH_THREADGROUP)
#undef MH_POINTEE

template <class P> MH_INLINE void declare(int index) {
  mh_declare(index, Pointee<P>::space, 1, Pointee<P>::constant_data);
}
template <class P> MH_INLINE P bind(int index) { return Pointee<P>::bind(mh_argument(index)); }

// A place in the grid as the parameter's type: a scalar takes the first component.
template <class P, class Source> MH_INLINE P coordinate(const Source& source) {
  typedef typename Shape<P>::element E;
  if constexpr (__is_array(Source)) {
    if constexpr (Shape<P>::size == 1) {
      return P(source[0]);
    } else {
      P r;
      for (int i = 0; i < Shape<P>::size; ++i) r[i] = E(source[i]);
      return r;
    }
  } else {
    return P(source);
  }
}

template <class T>
MH_INLINE threadgroup T& threadgroup_variable(const void* key, const char* name) {
  return *(threadgroup T*)mh_threadgroup_variable(key, sizeof(T), alignof(T), name);
}

// `threadgroup T x = value;`: every thread stores it.
template <class T> MH_INLINE void initialise(threadgroup T& x, const T& value) {
  if constexpr (__is_array(T)) {
    for (unsigned i = 0; i < sizeof(x) / sizeof(x[0]); ++i) initialise(x[i], value[i]);
  } else {
    x = value;
  }
}

}  // namespace mh

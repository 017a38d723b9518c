// Atomics, relaxed as Metal's are. The runtime checks the access first; the operation itself is an
// ordinary one, since one operating system thread runs the whole launch.
#pragma once
#include "simd.h"

namespace metal {

enum memory_order { memory_order_relaxed = 0, memory_order_acquire = 2, memory_order_release = 3,
                    memory_order_acq_rel = 4, memory_order_seq_cst = 5 };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup,
                    thread_scope_device };

template <class T> struct atomic {
  T mh_value;
};
template <class T> using _atomic = atomic<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

}  // namespace metal

namespace mh {
// The plain operation behind each atomic, kept from the instrumentation: mh_atomic has checked it.
template <class T> __attribute__((noinline, nodebug)) MH_UNCHECKED T peek(const volatile T* p) { return *p; }
template <class T> __attribute__((noinline, nodebug)) MH_UNCHECKED void poke(volatile T* p, T v) { *p = v; }
}  // namespace mh

namespace metal {

#define MH_FETCH(SPACE, NAME, EXPRESSION)                                                        \
  template <class T, class U>                                                                    \
  MH_INLINE T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* p, U operand, memory_order) { \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_MODIFY);                                                   \
    const T x = mh::peek<T>(q), y = T(operand);                                                  \
    mh::poke<T>(q, T(EXPRESSION));                                                               \
    return x;                                                                                    \
  }
#define MH_ATOMICS(SPACE)                                                                        \
  MH_FETCH(SPACE, add, x + y) MH_FETCH(SPACE, sub, x - y) MH_FETCH(SPACE, and, x & y)            \
  MH_FETCH(SPACE, or, x | y) MH_FETCH(SPACE, xor, x ^ y)                                         \
  MH_FETCH(SPACE, min, x < y ? x : y) MH_FETCH(SPACE, max, x > y ? x : y)                        \
  template <class T>                                                                             \
  MH_INLINE T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {            \
    const volatile T* q = (const volatile T*)&p->mh_value;                                       \
    mh_atomic(q, sizeof(T), MH_ATOMIC_LOAD);                                                     \
    return mh::peek<T>(q);                                                                       \
  }                                                                                              \
  template <class T, class U>                                                                    \
  MH_INLINE void atomic_store_explicit(volatile SPACE atomic<T>* p, U value, memory_order) {     \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_STORE);                                                    \
    mh::poke<T>(q, T(value));                                                                    \
  }                                                                                              \
  template <class T, class U>                                                                    \
  MH_INLINE T atomic_exchange_explicit(volatile SPACE atomic<T>* p, U value, memory_order) {     \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_MODIFY);                                                   \
    const T x = mh::peek<T>(q);                                                                  \
    mh::poke<T>(q, T(value));                                                                    \
    return x;                                                                                    \
  }                                                                                              \
  template <class T, class U>                                                                    \
  MH_INLINE bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* p,              \
                                                       thread T* expected, U desired,            \
                                                       memory_order, memory_order) {             \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_MODIFY);                                                   \
    const T x = mh::peek<T>(q), e = *expected;                                                   \
    if (__builtin_memcmp(&x, &e, sizeof(T)) == 0) {                                              \
      mh::poke<T>(q, T(desired));                                                                \
      return true;                                                                               \
    }                                                                                            \
    *expected = x;                                                                               \
    return false;                                                                                \
  }
MH_ATOMICS(device)
MH_ATOMICS(threadgroup)
#undef MH_ATOMICS
#undef MH_FETCH

// A fence orders nothing by itself here; kernels that hand data over through it and an atomic flag
// between threadgroups are judged as if it were not there.
MH_INLINE void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

}  // namespace metal

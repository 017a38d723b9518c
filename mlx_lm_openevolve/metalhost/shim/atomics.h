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
  static_assert(mh_traits::one_of<T, int, uint, bool, float, ulong>,
                "atomic is for int, uint, bool, float and ulong");
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

// What is atomic (MSL 6.15.4): 32-bit integers wholly; floats in device memory, no more than added
// and subtracted; bool without arithmetic; ulong in device memory, its minimum and maximum.
namespace mh_traits {
template <class T, bool DEVICE> using Stored = enable_if_t<DEVICE || one_of<T, int, uint, bool>>;
template <class T, bool ALLOWED>
using Fetched = enable_if_t<one_of<T, int, uint> || (ALLOWED && one_of<T, float>)>;
}  // namespace mh_traits

// Only a fence takes another order (MSL 6.15.1). Where the order is no constant, nothing is said.
#define MH_RELAXED(ORDER)                                   \
  __attribute__((diagnose_if(ORDER != memory_order_relaxed, \
                             "an atomic operation takes memory_order_relaxed alone", "error")))
#define MH_FETCH(SPACE, FLOATS, NAME, EXPRESSION)                                                \
  template <class T, class U, class = mh_traits::Fetched<T, FLOATS>>                             \
  MH_INLINE T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* p, U operand,             \
                                            memory_order order) MH_RELAXED(order) {              \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_MODIFY);                                                   \
    const T x = mh::peek<T>(q), y = T(operand);                                                  \
    mh::poke<T>(q, T(EXPRESSION));                                                               \
    return x;                                                                                    \
  }
#define MH_ATOMICS(SPACE, DEVICE)                                                                \
  MH_FETCH(SPACE, DEVICE, add, x + y) MH_FETCH(SPACE, DEVICE, sub, x - y)                        \
  MH_FETCH(SPACE, false, and, x & y) MH_FETCH(SPACE, false, or, x | y)                           \
  MH_FETCH(SPACE, false, xor, x ^ y) MH_FETCH(SPACE, false, min, x < y ? x : y)                  \
  MH_FETCH(SPACE, false, max, x > y ? x : y)                                                     \
  template <class T, class = mh_traits::Stored<T, DEVICE>>                                       \
  MH_INLINE T atomic_load_explicit(const volatile SPACE atomic<T>* p,                            \
                                 memory_order order) MH_RELAXED(order) {                         \
    const volatile T* q = (const volatile T*)&p->mh_value;                                       \
    mh_atomic(q, sizeof(T), MH_ATOMIC_LOAD);                                                     \
    return mh::peek<T>(q);                                                                       \
  }                                                                                              \
  template <class T, class U, class = mh_traits::Stored<T, DEVICE>>                              \
  MH_INLINE void atomic_store_explicit(volatile SPACE atomic<T>* p, U value,                     \
                                     memory_order order) MH_RELAXED(order) {                     \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_STORE);                                                    \
    mh::poke<T>(q, T(value));                                                                    \
  }                                                                                              \
  template <class T, class U, class = mh_traits::Stored<T, DEVICE>>                              \
  MH_INLINE T atomic_exchange_explicit(volatile SPACE atomic<T>* p, U value,                     \
                                     memory_order order) MH_RELAXED(order) {                     \
    volatile T* q = (volatile T*)&p->mh_value;                                                   \
    mh_atomic(q, sizeof(T), MH_ATOMIC_MODIFY);                                                   \
    const T x = mh::peek<T>(q);                                                                  \
    mh::poke<T>(q, T(value));                                                                    \
    return x;                                                                                    \
  }                                                                                              \
  template <class T, class U, class = mh_traits::Stored<T, DEVICE>>                              \
  MH_INLINE bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* p,              \
                                                       thread T* expected, U desired,            \
                                                       memory_order order, memory_order failed)  \
      MH_RELAXED(order) MH_RELAXED(failed) {                                                     \
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
MH_ATOMICS(device, true)
MH_ATOMICS(threadgroup, false)
#undef MH_ATOMICS
#define MH_EXTREME(NAME, BETTER)                                                                 \
  MH_INLINE void atomic_##NAME##_explicit(volatile device atomic<ulong>* p, ulong y,             \
                                          memory_order order) MH_RELAXED(order) {                \
    volatile ulong* q = (volatile ulong*)&p->mh_value;                                           \
    mh_atomic(q, sizeof y, MH_ATOMIC_MODIFY);                                                    \
    const ulong x = mh::peek<ulong>(q);                                                          \
    mh::poke<ulong>(q, y BETTER x ? y : x);                                                      \
  }
MH_EXTREME(min, <)
MH_EXTREME(max, >)
#undef MH_EXTREME
#undef MH_FETCH
#undef MH_RELAXED

// A fence orders nothing by itself here; kernels that hand data over through it and an atomic flag
// between threadgroups are judged as if it were not there.
MH_INLINE void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

}  // namespace metal

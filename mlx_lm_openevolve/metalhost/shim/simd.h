// Barriers, simdgroup and quadgroup functions. Each lane posts its value and
// waits; the last one to come computes the results of all (runtime/schedule.cpp). The path of calls
// to it tells calls apart: lanes that came by different paths have diverged.
#pragma once
#include "../runtime/abi.h"
#include "math.h"

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8
};
MH_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) | uint(b));
}
MH_INLINE constexpr mem_flags operator&(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) & uint(b));
}

MH_INLINE void threadgroup_barrier(mem_flags flags) {
  mh_barrier(uint(flags));
}
MH_INLINE void simdgroup_barrier(mem_flags flags) {
  mh_simdgroup_barrier(uint(flags));
}

}  // namespace metal

namespace mh {

// Of one loop (metalhost/loops.py): its iteration tells two waits at one place apart.
struct Loop {
  const unsigned long around = mh_turns;
  unsigned long turns = 0;
  MH_INLINE Loop() {}
  MH_INLINE ~Loop() { mh_turns = around; }
  MH_INLINE bool turn() {
    mh_turns = (around + ++turns) * 0x9e3779b97f4a7c15ul;
    return true;
  }
};

template <class T> MH_UNCHECKED inline T& slot_in(MhSlots* s, unsigned lane) {
  return *reinterpret_cast<T*>(s->in[lane]);
}
template <class T> MH_UNCHECKED inline T& slot_out(MhSlots* s, unsigned lane) {
  return *reinterpret_cast<T*>(s->out[lane]);
}
MH_UNCHECKED inline bool present(MhSlots* s, unsigned lane) { return s->present >> lane & 1; }

template <class T> struct Indexed {  // a value and a lane number
  T value;
  uint index;
};

struct Add { template <class T> static MH_UNCHECKED T of(T a, T b) { return T(a + b); } };
struct Multiply { template <class T> static MH_UNCHECKED T of(T a, T b) { return T(a * b); } };
struct And { template <class T> static MH_UNCHECKED T of(T a, T b) { return T(a & b); } };
struct Or { template <class T> static MH_UNCHECKED T of(T a, T b) { return T(a | b); } };
struct Xor { template <class T> static MH_UNCHECKED T of(T a, T b) { return T(a ^ b); } };
#define MH_EXTREME(NAME, BEFORE)                                              \
  struct NAME {                                                               \
    template <class T> static MH_UNCHECKED T of(T a, T b) {                   \
      if constexpr (Shape<T>::size == 1) return b != b || b BEFORE a ? a : b; \
      else for (int i = 0; i < Shape<T>::size; ++i) a[i] = of(a[i], b[i]);    \
      return a;                                                               \
    }                                                                         \
  };
MH_EXTREME(Max, <)
MH_EXTREME(Min, >)
#undef MH_EXTREME

// What reductions take (MSL 6.9.2): scalars and vectors of numbers up to 32 bits, no bool.
template <class T> using Number = typename Shape<T>::element;
template <class T>
using Reducible = metal::enable_if_t<
    (metal::is_integral<Number<T>>::value || metal::is_floating_point<Number<T>>::value) &&
    !metal::is_same<Number<T>, bool>::value && sizeof(Number<T>) < 8>;
template <class T>
using ReducibleBits =
    metal::enable_if_t<metal::is_integral<Number<T>>::value && sizeof(Number<T>) < 8>;

// Reduction over each group of WIDTH lanes, pairwise.
template <class T, class Op, int WIDTH> MH_UNCHECKED void reduce(MhSlots* s) {
  for (unsigned base = 0; base < MH_LANES; base += WIDTH) {
    T v[WIDTH];
    unsigned n = 0;
    for (unsigned k = base; k < base + WIDTH; ++k) {
      if (present(s, k)) v[n++] = slot_in<T>(s, k);
    }
    if (n == 0) continue;
    for (unsigned step = 1; step < n; step *= 2) {
      for (unsigned k = 0; k + step < n; k += 2 * step) v[k] = Op::of(v[k], v[k + step]);
    }
    for (unsigned k = base; k < base + WIDTH; ++k) {
      if (present(s, k)) slot_out<T>(s, k) = v[0];
    }
  }
}

template <class T, class Op, bool INCLUSIVE, int WIDTH> MH_UNCHECKED void scan(MhSlots* s) {
  const T first = T(metal::is_same<Op, Multiply>::value ? 1 : 0);
  T sum = first;
  for (unsigned k = 0; k < MH_LANES; ++k) {
    if (k % WIDTH == 0) sum = first;
    if (!present(s, k)) continue;
    const T before = sum;
    sum = Op::of(sum, slot_in<T>(s, k));
    slot_out<T>(s, k) = INCLUSIVE ? sum : before;
  }
}

// Takes the value of the lane that each lane names; a lane outside the group gives its own.
template <class T, int WIDTH> MH_UNCHECKED void gather(MhSlots* s) {
  for (unsigned k = 0; k < MH_LANES; ++k) {
    if (!present(s, k)) continue;
    const unsigned from = slot_in<Indexed<T>>(s, k).index;
    const bool valid = from < MH_LANES && from / WIDTH == k / WIDTH && present(s, from);
    slot_out<T>(s, k) = slot_in<Indexed<T>>(s, valid ? from : k).value;
  }
}

MH_UNCHECKED inline void ballot(MhSlots* s) {
  unsigned mask = 0;
  for (unsigned k = 0; k < MH_LANES; ++k) {
    if (present(s, k) && slot_in<bool>(s, k)) mask |= 1u << k;
  }
  for (unsigned k = 0; k < MH_LANES; ++k) {
    if (present(s, k)) slot_out<unsigned>(s, k) = mask;
  }
}

template <class R, class T>
MH_INLINE R collective(const char* name, T value, MhCombine combine, int width,
                       unsigned flops) {
  static_assert(sizeof(T) <= MH_SLOT && sizeof(R) <= MH_SLOT, "the value is too large");
  R result;
  mh_collective(name, &value, sizeof value, &result, sizeof result, combine, width, flops);
  return result;
}

template <class T, int WIDTH>
MH_INLINE T shuffle(const char* name, T value, uint from) {
  const Indexed<T> posted = {value, from};
  return collective<T>(name, posted, &gather<T, WIDTH>, WIDTH, 0);
}

MH_INLINE uint lane() { return mh_lane(); }

}  // namespace mh

namespace metal {

#define MH_REDUCE(NAME, OP, FLOPS, TYPES)                                                      \
  template <class T, class = mh::TYPES<T>>                                                     \
  MH_INLINE T simd_##NAME(T x) {                                  \
    return mh::collective<T>("simd_" #NAME, x, &mh::reduce<T, mh::OP, 32>, 32, FLOPS);   \
  }                                                                                            \
  template <class T, class = mh::TYPES<T>>                                                     \
  MH_INLINE T quad_##NAME(T x) {                                  \
    return mh::collective<T>("quad_" #NAME, x, &mh::reduce<T, mh::OP, 4>, 4, FLOPS);     \
  }
MH_REDUCE(sum, Add, 0, Reducible)
MH_REDUCE(product, Multiply, 0, Reducible)
MH_REDUCE(max, Max, 0, Reducible)
MH_REDUCE(min, Min, 0, Reducible)
MH_REDUCE(and, And, 0, ReducibleBits)
MH_REDUCE(or, Or, 0, ReducibleBits)
MH_REDUCE(xor, Xor, 0, ReducibleBits)
#undef MH_REDUCE

#define MH_SCAN(NAME, OP, INCLUSIVE)                                                       \
  template <class T, class = mh::Reducible<T>>                                             \
  MH_INLINE T simd_prefix_##NAME(T x) {                       \
    return mh::collective<T>("simd_prefix_" #NAME, x,                                \
                             &mh::scan<T, mh::OP, INCLUSIVE, 32>, 32, 0);                  \
  }                                                                                        \
  template <class T, class = mh::Reducible<T>>                                             \
  MH_INLINE T quad_prefix_##NAME(T x) {                       \
    return mh::collective<T>("quad_prefix_" #NAME, x,                                \
                             &mh::scan<T, mh::OP, INCLUSIVE, 4>, 4, 0);                    \
  }
MH_SCAN(inclusive_sum, Add, true)
MH_SCAN(exclusive_sum, Add, false)
MH_SCAN(inclusive_product, Multiply, true)
MH_SCAN(exclusive_product, Multiply, false)
#undef MH_SCAN

// What shuffles take (MSL 6.9.2): as reductions.
#define MH_SHUFFLE(NAME, WIDTH, FROM)                                    \
  template <class T, class = mh::Reducible<T>>                           \
  MH_INLINE T NAME(T x, ushort k) {                                      \
    const uint at = mh::lane(), base = at / WIDTH * WIDTH;               \
    (void)base;                                                          \
    return mh::shuffle<T, WIDTH>(#NAME, x, FROM);                        \
  }
// In each group of MODULO lanes (a power of two from 2 to WIDTH, MSL 6.9.2): those that a plain
// shuffle leaves alone come from `fill`.
#define MH_FILL(NAME, WIDTH, INSIDE, FROM, FROM_FILL)                            \
  template <class T, class = mh::Reducible<T>>                                   \
  MH_INLINE T NAME(T x, T fill, ushort k, ushort modulo = WIDTH) {               \
    if (modulo < 2 || modulo > WIDTH || (modulo & (modulo - 1))) mh_bad_modulo(#NAME, modulo); \
    const uint at = mh::lane(), base = at / modulo * modulo;                     \
    const T a = mh::shuffle<T, WIDTH>(#NAME, x, FROM);                           \
    const T b = mh::shuffle<T, WIDTH>(#NAME, fill, FROM_FILL);                   \
    return INSIDE ? a : b;                                                       \
  }
#define MH_SHUFFLES(P, WIDTH)                                                              \
  MH_SHUFFLE(P##shuffle, WIDTH, base + k)                                                  \
  MH_SHUFFLE(P##broadcast, WIDTH, base + k)                                                \
  MH_SHUFFLE(P##shuffle_xor, WIDTH, at ^ k)                                                \
  MH_SHUFFLE(P##shuffle_up, WIDTH, at - k)                                                 \
  MH_SHUFFLE(P##shuffle_down, WIDTH, at + k)                                               \
  MH_SHUFFLE(P##shuffle_rotate_up, WIDTH, base + (at - base + WIDTH - k % WIDTH) % WIDTH)  \
  MH_SHUFFLE(P##shuffle_rotate_down, WIDTH, base + (at - base + k) % WIDTH)                \
  MH_FILL(P##shuffle_and_fill_up, WIDTH, at - base >= k, at - k, at + modulo - k)          \
  MH_FILL(P##shuffle_and_fill_down, WIDTH, at - base + k < modulo, at + k, at + k - modulo) \
  template <class T, class = mh::Reducible<T>>                                             \
  MH_INLINE T P##broadcast_first(T x) {                                                    \
    return mh::shuffle<T, WIDTH>(#P "broadcast_first", x, mh::lane() / WIDTH * WIDTH);     \
  }
MH_SHUFFLES(simd_, 32)
MH_SHUFFLES(quad_, 4)
#undef MH_SHUFFLES
#undef MH_SHUFFLE
#undef MH_FILL

#define MH_VOTE(NAME, MASK)                                                \
  class NAME {                                                             \
   public:                                                                 \
    typedef ulong vote_t;                                                  \
    MH_INLINE explicit constexpr NAME(vote_t v) : bits_(v) {}              \
    MH_INLINE explicit constexpr operator vote_t() const { return bits_; } \
    MH_INLINE bool all() const { return bits_ == MASK; }                   \
    MH_INLINE bool any() const { return bits_ != 0; }                      \
                                                                           \
   private:                                                                \
    vote_t bits_;                                                          \
  };
MH_VOTE(simd_vote, 0xffffffffu)
MH_VOTE(quad_vote, 0xfu)
#undef MH_VOTE
MH_INLINE simd_vote simd_ballot(bool x) {
  return simd_vote(mh::collective<uint>("simd_ballot", x, &mh::ballot, 32, 0));
}
MH_INLINE simd_vote simd_active_threads_mask() {
  return simd_vote(mh::collective<uint>("simd_active_threads_mask", true, &mh::ballot, 32, 0));
}
MH_INLINE quad_vote quad_ballot(bool x) {
  const uint bits = mh::collective<uint>("quad_ballot", x, &mh::ballot, 4, 0);
  return quad_vote(bits >> (mh::lane() & ~3u) & 0xf);
}
MH_INLINE quad_vote quad_active_threads_mask() {
  const uint bits = mh::collective<uint>("quad_active_threads_mask", true, &mh::ballot, 4, 0);
  return quad_vote(bits >> (mh::lane() & ~3u) & 0xf);
}
MH_INLINE bool simd_all(bool x) {
  return mh::collective<uint>("simd_all", !x, &mh::ballot, 32, 0) == 0;
}
MH_INLINE bool simd_any(bool x) {
  return mh::collective<uint>("simd_any", x, &mh::ballot, 32, 0) != 0;
}
MH_INLINE bool quad_all(bool x) {
  return mh::collective<uint>("quad_all", x, &mh::reduce<uint, mh::And, 4>, 4, 0) != 0;
}
MH_INLINE bool quad_any(bool x) {
  return mh::collective<uint>("quad_any", x, &mh::reduce<uint, mh::Or, 4>, 4, 0) != 0;
}
MH_INLINE bool simd_is_first() { return mh::lane() == 0; }
MH_INLINE bool quad_is_first() { return mh::lane() % 4 == 0; }

}  // namespace metal

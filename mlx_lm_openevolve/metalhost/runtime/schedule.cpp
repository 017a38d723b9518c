// Runs the grid: one threadgroup after another, its threads as fibers. A thread runs until it
// waits (a collective, a barrier) and then hands over directly to the next one; the seed turns the
// order of threadgroups, simdgroups and lanes.
#include "schedule.h"

#include <string.h>

#include "counters.h"
#include "fibers.h"
#include "memory.h"
#include "races.h"
#include "report.h"
#include "threadgroup.h"

namespace mh {

Thread* g_thread;
Simdgroup* g_simdgroups;
unsigned g_simdgroup_count;
uint32_t g_group_index;
uint16_t g_barrier_epoch_device, g_barrier_epoch_threadgroup, g_barriers;

namespace {

Thread g_main;
Thread* g_threads;
unsigned g_thread_count;
Random g_random;
unsigned g_current;    // the simdgroup that runs
unsigned g_rotation;   // of the lanes, by the seed
bool g_diverged;       // this threadgroup has missed a barrier, and it is reported

unsigned all_lanes(const Simdgroup& s) { return s.lanes == 32 ? ~0u : (1u << s.lanes) - 1; }

Thread& first_of(Simdgroup& s, unsigned set) { return *s.lane[__builtin_ctz(set)]; }

// Reports that `waiting` waits where `other` does not; the launch goes on with those that do.
void divergence(const char* kind, Thread& waiting, Thread& other, unsigned missing) {
  Finding f(kind);
  f.pc("pc", waiting.wait_pc).text("call", waiting.wait_name).number("missing", missing);
  g_thread = &waiting;  // thread_number() speaks of g_thread
  f.thread("thread", thread_number());
  g_thread = &other;
  f.thread("other_thread", thread_number());
  if (other.state == State::kDone) {
    f.text("other_access", "returned");
  } else {
    f.text("other_access", other.wait_name).pc("other_pc", other.wait_pc);
  }
  f.note();
}

bool same_wait(const Thread& a, const Thread& b) {
  return a.state == b.state && a.wait_path == b.wait_path && a.combine == b.combine;
}

// Completes the collective that the lanes of `set` wait in.
void complete(Simdgroup& s, unsigned set) {
  Thread& t = first_of(s, set);
  if (t.state == State::kSimdBarrier) {
    if (t.wait_flags & MH_FENCE_DEVICE) ++s.device_epoch;
    if (t.wait_flags & MH_FENCE_THREADGROUP) ++s.threadgroup_epoch;
  } else {
    s.slots.present = set;
    t.combine(&s.slots);
  }
  if (set == all_lanes(s)) ++s.met;
  if (g_launch->count) count_collective(t.wait_name, s.flops);
  s.collective &= ~set;
  s.simd_barrier &= ~set;
  s.ready |= set;
  for (unsigned bits = set; bits; bits &= bits - 1) {
    s.lane[__builtin_ctz(bits)]->state = State::kReady;
  }
}

// No lane of the simdgroup can run: complete what all of them wait in. False: it waits at a
// threadgroup barrier, or all of it has returned.
bool resolve_simdgroup(Simdgroup& s) {
  const unsigned waiting = s.collective | s.simd_barrier;
  if (g_launch->count) count_flush(s);
  if (!waiting) return false;
  const unsigned everyone = all_lanes(s);
  Thread& t = first_of(s, waiting);
  bool released = false;
  if (t.state == State::kCollective && s.width == 4) {
    for (unsigned quad = 0; quad < MH_LANES; quad += 4) {
      const unsigned set = everyone & (0xfu << quad);
      if (!set || (s.collective & set) != set) continue;
      Thread& head = first_of(s, set);
      bool same = true;
      for (unsigned k = quad; k < quad + 4 && k < s.lanes; ++k) same &= same_wait(head, *s.lane[k]);
      if (!same) continue;
      complete(s, set);
      released = true;
    }
    if (released) return true;
  }
  unsigned together = 0;
  Thread* other = nullptr;
  for (unsigned k = 0; k < s.lanes; ++k) {
    if (same_wait(t, *s.lane[k])) together |= 1u << k;
    else if (!other) other = s.lane[k];
  }
  if (!other) {
    s.diverged = false;
  } else if (!s.diverged) {  // one finding until the lanes are together again
    s.diverged = true;
    Thread* self = g_thread;
    divergence("divergent-collective", t, *other, unsigned(__builtin_popcount(everyone & ~together)));
    g_thread = self;
  }
  complete(s, together);
  return true;
}

// Every simdgroup waits at a barrier or has returned.
bool release_barrier() {
  Thread* waiting = nullptr;
  unsigned missing = 0;
  for (unsigned i = 0; i < g_thread_count; ++i) {
    if (g_threads[i].state == State::kBarrier) waiting = waiting ? waiting : &g_threads[i];
    else ++missing;
  }
  if (!waiting) return false;
  for (unsigned i = 0; i < g_thread_count && !g_diverged; ++i) {
    if (!same_wait(*waiting, g_threads[i])) {
      g_diverged = true;
      Thread* self = g_thread;
      divergence("divergent-barrier", *waiting, g_threads[i], missing);
      g_thread = self;
      break;
    }
  }
  ++g_barriers;
  if (waiting->wait_flags & MH_FENCE_DEVICE) ++g_barrier_epoch_device;
  if (waiting->wait_flags & MH_FENCE_THREADGROUP) ++g_barrier_epoch_threadgroup;
  if (g_launch->count) count_barrier();
  for (unsigned i = 0; i < g_simdgroup_count; ++i) {
    Simdgroup& s = g_simdgroups[i];
    s.ready = s.barrier;
    s.barrier = 0;
    for (unsigned k = 0; k < s.lanes; ++k) {
      if (s.ready >> k & 1) s.lane[k]->state = State::kReady;
    }
  }
  g_current = g_random.below(g_simdgroup_count);
  return true;
}

inline Thread* ready_lane(Simdgroup& s) {
  const unsigned r = g_rotation;
  const unsigned turned = r ? (s.ready >> r | s.ready << (32 - r)) : s.ready;
  return s.lane[(unsigned(__builtin_ctz(turned)) + r) & 31];
}

Thread* pick() {
  for (;;) {
    Simdgroup& s = g_simdgroups[g_current];
    if (s.ready) return ready_lane(s);
    if (resolve_simdgroup(s)) continue;
    unsigned next = g_simdgroup_count;
    for (unsigned i = 1; i <= g_simdgroup_count; ++i) {
      const unsigned k = (g_current + i) % g_simdgroup_count;
      if (g_simdgroups[k].ready) { next = k; break; }
    }
    if (next < g_simdgroup_count) {
      g_current = next;
    } else if (!release_barrier()) {
      return &g_main;
    }
  }
}

inline void give_way() {
  Thread* next = pick();
  Thread* self = g_thread;
  if (next == self) return;
  g_thread = next;
  const unsigned long turns = mh_turns;
  mh_switch(&self->stack_pointer, next->stack_pointer);
  mh_turns = turns;
}

void fiber_entry() {
  mh_turns = 0;
  mh_entry();
  Simdgroup& s = g_simdgroups[g_thread->place.simdgroup];
  const unsigned bit = 1u << g_thread->place.lane;
  g_thread->state = State::kDone;
  s.ready &= ~bit;
  s.done |= bit;
  give_way();
  __builtin_trap();
}

void start_group(const unsigned group[3]) {
  unsigned size[3];
  unsigned groups[3];
  for (int d = 0; d < 3; ++d) {
    const uint64_t begin = uint64_t(group[d]) * g_launch->group[d];
    const uint64_t left = g_launch->grid[d] - begin;
    size[d] = unsigned(left < g_launch->group[d] ? left : g_launch->group[d]);
    groups[d] = unsigned((g_launch->grid[d] + g_launch->group[d] - 1) / g_launch->group[d]);
  }
  g_thread_count = size[0] * size[1] * size[2];
  g_simdgroup_count = (g_thread_count + MH_LANES - 1) / MH_LANES;
  const uint64_t full = g_launch->group[0] * g_launch->group[1] * g_launch->group[2];
  for (unsigned i = 0; i < g_simdgroup_count; ++i) {
    Simdgroup& s = g_simdgroups[i];
    s.lanes = i + 1 < g_simdgroup_count ? MH_LANES : g_thread_count - i * MH_LANES;
    s.ready = all_lanes(s);
    s.collective = s.simd_barrier = s.barrier = s.done = 0;
    s.device_epoch = s.threadgroup_epoch = s.met = 0;
    s.diverged = false;
  }
  g_barrier_epoch_device = g_barrier_epoch_threadgroup = g_barriers = 0;
  g_diverged = false;
  for (unsigned i = 0; i < g_thread_count; ++i) {
    Thread& t = g_threads[i];
    MhPlace& p = t.place;
    const unsigned at[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    for (int d = 0; d < 3; ++d) {
      p.thread_in_group[d] = at[d];
      p.group_in_grid[d] = group[d];
      p.thread_in_grid[d] = unsigned(group[d] * g_launch->group[d]) + at[d];
      p.threads_in_group[d] = size[d];
      p.full_threads_in_group[d] = unsigned(g_launch->group[d]);
      p.threads_in_grid[d] = unsigned(g_launch->grid[d]);
      p.groups_in_grid[d] = groups[d];
    }
    p.index_in_group = i;
    p.lane = i % MH_LANES;
    p.simdgroup = i / MH_LANES;
    p.simdgroups = g_simdgroup_count;
    p.full_simdgroups = unsigned((full + MH_LANES - 1) / MH_LANES);
    t.state = State::kReady;
    g_simdgroups[p.simdgroup].lane[p.lane] = &t;
    prepare_stack(t, i, fiber_entry);
  }
}

}  // namespace

void run_grid() {
  const uint64_t full = g_launch->group[0] * g_launch->group[1] * g_launch->group[2];
  g_random.state = g_launch->seed;
  const unsigned threads = unsigned(full);
  g_threads = static_cast<Thread*>(reserve(threads * sizeof(Thread)));
  g_simdgroups =
      static_cast<Simdgroup*>(reserve((threads / MH_LANES + 1) * sizeof(Simdgroup)));
  make_stacks(threads);
  uint64_t groups[3];
  for (int d = 0; d < 3; ++d) {
    groups[d] = (g_launch->grid[d] + g_launch->group[d] - 1) / g_launch->group[d];
  }
  const uint64_t count = groups[0] * groups[1] * groups[2];
  const uint64_t start = g_launch->seed ? g_random.next() % (count ? count : 1) : 0;
  const bool backwards = g_launch->seed && (g_random.next() & 1);
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t k = (start + i) % count;
    if (backwards) k = count - 1 - k;
    const unsigned group[3] = {unsigned(k % groups[0]), unsigned(k / groups[0] % groups[1]),
                               unsigned(k / groups[0] / groups[1])};
    g_group_index = uint32_t(k);
    start_group(group);
    g_rotation = g_launch->seed ? g_random.below(MH_LANES) : 0;
    g_current = g_launch->seed ? g_random.below(g_simdgroup_count) : 0;
    g_thread = &g_main;
    give_way();
    g_thread = nullptr;
    if (g_launch->count) count_group();
    settle_store();
    clear_threadgroup_memory();
  }
}

}  // namespace mh

__attribute__((address_space(1))) unsigned long mh_turns;
extern "C" const MhPlace* mh_place() { return &mh::g_thread->place; }
extern "C" unsigned mh_lane() { return mh::g_thread->place.lane; }

namespace {

using namespace mh;

// A number for the path of calls to a wait, from the return addresses of the frames below, and for
// the iterations of the loops around: two calls on one line, one helper called from two branches,
// one call in two iterations have different paths.
inline uint64_t call_path(const Thread& t, const void* frame) {
  uint64_t path = 1469598103934665603ull ^ mh_turns;
  for (Address at = Address(frame); at >= t.stack_low && at + 16 <= t.stack_high;) {
    const Address* words = reinterpret_cast<const Address*>(at);  // the caller's frame, its address
    path = (path ^ words[1]) * 1099511628211ull;
    if (words[0] <= at) break;
    at = words[0];
  }
  return path;
}

// Parks the running thread in the set that `state` stands for.
inline Simdgroup& park(State state, const char* name, Address pc, const void* frame) {
  Thread& t = *g_thread;
  Simdgroup& s = g_simdgroups[t.place.simdgroup];
  const unsigned bit = 1u << t.place.lane;
  t.state = state;
  t.wait_name = name;
  t.wait_path = call_path(t, frame);
  t.wait_pc = pc;
  t.combine = nullptr;
  s.ready &= ~bit;
  (state == State::kBarrier ? s.barrier : state == State::kSimdBarrier ? s.simd_barrier
                                                                        : s.collective) |= bit;
  return s;
}

}  // namespace

extern "C" void mh_bad_modulo(const char* name, unsigned modulo) {
  Finding f("bad-modulo");
  f.text("call", name).number("size", modulo).pc("pc", MH_PC).thread("thread", thread_number());
  f.fatal();
}

#define MH_FRAME __builtin_frame_address(0)

extern "C" void mh_barrier(unsigned flags) {
  park(State::kBarrier, "threadgroup_barrier", MH_PC, MH_FRAME);
  g_thread->wait_flags = flags;
  give_way();
}

extern "C" void mh_simdgroup_barrier(unsigned flags) {
  park(State::kSimdBarrier, "simdgroup_barrier", MH_PC, MH_FRAME);
  g_thread->wait_flags = flags;
  give_way();
}

extern "C" void mh_collective(const char* name, const void* in, unsigned in_size, void* out,
                              unsigned out_size, MhCombine combine, int width, unsigned flops) {
  Simdgroup& s = park(State::kCollective, name, MH_PC, MH_FRAME);
  const unsigned lane = g_thread->place.lane;
  g_thread->combine = combine;
  s.width = width;
  s.flops = flops;
  memcpy(s.slots.in[lane], in, in_size);
  give_way();
  memcpy(out, s.slots.out[lane], out_size);
}

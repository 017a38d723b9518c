// Happens-before between the threads of a launch. Two accesses of one location by two threads,
// one of them a write, not both atomic, must be ordered
//   - by a threadgroup barrier between them that fences this memory (same threadgroup), or
//   - by a simdgroup barrier between them that fences it (same simdgroup).
// Nothing orders threads of two threadgroups within a launch.
// An epoch holds the number of threadgroup barriers (upper half) and of simdgroup barriers (lower
// half) passed so far; an earlier access is ordered when the number it carries is another one.
// Two conflicts do no harm, and are benign findings:
//   - two stores of the same value;
//   - a store after a read, where both threads have met in between, in a barrier that fences other
//     memory or in a collective of the simdgroup: what is read before needs no fence.
#include "races.h"

#include <string.h>

#include "report.h"

namespace mh {

namespace {

enum Verdict { kOrdered, kMet, kIfSame, kRace };

// A store that nothing orders with an earlier one: announced, and not yet done.
struct PendingStore {
  Announced access;  // of size 0: none
  Touch now, earlier;
  int space, buffer;
  const char* variable;
  uint64_t offset;
  unsigned char before[16];
} g_store;

inline Touch touch_now(const Announced& access, int space) {
  const Simdgroup& s = g_simdgroups[g_thread->place.simdgroup];
  Touch t = {};
  t.thread = thread_number();
  t.pc = pack_pc(access.pc);
  t.epoch = space == MH_DEVICE ? uint32_t(g_barrier_epoch_device) << 16 | s.device_epoch
                               : uint32_t(g_barrier_epoch_threadgroup) << 16 | s.threadgroup_epoch;
  t.met = g_barriers;
  t.met_simd = s.met & 0x3fff;
  t.atomic = access.atomic;
  return t;
}

inline bool conflicts(const Touch& earlier, const Touch& now) {
  if (earlier.thread == 0 || earlier.thread == now.thread || (now.atomic && earlier.atomic)) {
    return false;
  }
  const uint32_t a = earlier.thread - 1, b = now.thread - 1;
  if (a / kMaxThreads != b / kMaxThreads) return true;
  if (earlier.epoch >> 16 != now.epoch >> 16) return false;
  if (a / MH_LANES != b / MH_LANES) return true;
  return earlier.epoch == now.epoch;
}

// Whether both threads have been in one barrier or collective since.
inline bool met(const Touch& earlier, const Touch& now) {
  const uint32_t a = earlier.thread - 1, b = now.thread - 1;
  if (a / kMaxThreads != b / kMaxThreads) return false;
  if (earlier.met != now.met) return true;
  return a / MH_LANES == b / MH_LANES && earlier.met_simd != now.met_simd;
}

inline Verdict judge(const Touch& earlier, bool earlier_write, const Touch& now, bool write) {
  if (!conflicts(earlier, now)) return kOrdered;
  if (!write || now.atomic || earlier.atomic) return kRace;
  if (earlier_write) return kIfSame;
  return met(earlier, now) ? kMet : kRace;
}

void report(const PendingStore& p, bool earlier_write, Verdict verdict) {
  const char* how = verdict == kMet ? "met" : "same";
  Finding f(verdict == kRace ? "race" : "benign");
  f.pc("pc", p.access.pc);
  f.text("access", access_name(p.access.write, p.access.atomic));
  f.text("space", p.space == MH_DEVICE ? "device" : "threadgroup");
  if (p.variable) f.text("variable", p.variable); else f.number("buffer", p.buffer);
  f.number("offset", (long long)p.offset).thread("thread", p.now.thread);
  f.pc("other_pc", unpack_pc(p.earlier.pc));
  f.text("other_access", access_name(earlier_write, p.earlier.atomic));
  f.thread("other_thread", p.earlier.thread);
  if (verdict == kRace) f.note(); else f.text("why", how).benign();
}

}  // namespace

void settle_store() {
  if (!g_store.access.size) return;
  const bool same = memcmp(reinterpret_cast<const void*>(g_store.access.address), g_store.before,
                           g_store.access.size) == 0;
  g_store.access.size = 0;
  report(g_store, true, same ? kIfSame : kRace);
}

void race_check(Cell& cell, const Announced& access, int space, int buffer, const char* variable,
                uint64_t offset) {
  const Touch now = touch_now(access, space);
  PendingStore found = {access, now, {}, space, buffer, variable, offset, {}};
  Verdict worst = kOrdered;
  bool worst_write = false, many = false;
  const auto against = [&](const Touch& earlier, bool earlier_write) {
    const Verdict v = judge(earlier, earlier_write, now, access.write);
    many |= v == kIfSame;
    if (v <= worst) return;
    worst = v;
    worst_write = earlier_write;
    found.earlier = earlier;
  };
  against(cell.write, true);
  if (access.write) {
    against(cell.write_other, true);
    against(cell.read, false);
    against(cell.read_other, false);
  }
  if (worst == kIfSame) {
    const void* there = reinterpret_cast<const void*>(access.address);
    if (g_stored) {
      report(found, true, memcmp(there, g_stored, access.size) == 0 ? kIfSame : kRace);
    } else if (!g_store.access.size) {  // one finding for an access of several granules
      g_store = found;
      memcpy(g_store.before, there, access.size);
    }
  } else if (worst != kOrdered) {
    report(found, worst_write, worst);
  }
  if (access.write) {
    if (!many) cell.write_other.thread = 0;
    else if (cell.write.thread != now.thread) cell.write_other = cell.write;
    cell.write = now;
    return;
  }
  // Keep two readers: the latest, and the latest of another thread that a later write by the
  // first one could still race with. A reader of another simdgroup is kept before one of the same.
  if (cell.read.thread && cell.read.thread != now.thread) {
    const bool same_simdgroup =
        (cell.read.thread - 1) / MH_LANES == (now.thread - 1) / MH_LANES;
    if (!same_simdgroup || !conflicts(cell.read_other, now)) cell.read_other = cell.read;
  }
  cell.read = now;
}

}  // namespace mh

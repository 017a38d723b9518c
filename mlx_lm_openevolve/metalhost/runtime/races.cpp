// Happens-before between the threads of a launch. Two accesses of one location by two threads,
// one of them a write, not both atomic, must be ordered
//   - by a threadgroup barrier between them that fences this memory (same threadgroup), or
//   - by a simdgroup barrier between them that fences it (same simdgroup).
// Nothing orders threads of two threadgroups within a launch.
// An epoch holds the number of threadgroup barriers (upper half) and of simdgroup barriers (lower
// half) passed so far; an earlier access is ordered when the number it carries is another one.
#include "races.h"

#include "report.h"

namespace mh {

namespace {

inline uint32_t epoch_now(int space) {
  const Simdgroup& s = g_simdgroups[g_thread->place.simdgroup];
  return space == MH_DEVICE
             ? uint32_t(g_barrier_epoch_device) << 16 | s.device_epoch
             : uint32_t(g_barrier_epoch_threadgroup) << 16 | s.threadgroup_epoch;
}

inline bool conflicts(const Touch& earlier, uint32_t me, uint32_t epoch, bool atomic) {
  if (earlier.thread == 0 || earlier.thread == me || (atomic && earlier.atomic)) return false;
  const uint32_t a = earlier.thread - 1, b = me - 1;
  if (a / kMaxThreads != b / kMaxThreads) return true;
  if (earlier.epoch >> 16 != epoch >> 16) return false;
  if (a / MH_LANES != b / MH_LANES) return true;
  return earlier.epoch == epoch;
}

void report(const Touch& earlier, bool earlier_write, bool write, bool atomic, int space,
            Address pc, int buffer, const char* variable, uint64_t offset) {
  Finding f("race");
  f.pc("pc", pc).text("access", atomic ? "atomic" : write ? "write" : "read");
  f.text("space", space == MH_DEVICE ? "device" : "threadgroup");
  if (variable) f.text("variable", variable); else f.number("buffer", buffer);
  f.number("offset", (long long)offset).thread("thread", thread_number());
  f.pc("other_pc", unpack_pc(earlier.pc));
  f.text("other_access", earlier.atomic ? "atomic" : earlier_write ? "write" : "read");
  f.thread("other_thread", earlier.thread).note();
}

}  // namespace

void race_check(Cell& cell, bool write, bool atomic, int space, Address pc, int buffer,
                const char* variable, uint64_t offset) {
  const uint32_t me = thread_number();
  const uint32_t epoch = epoch_now(space);
  const Touch now = {me, pack_pc(pc), epoch, atomic};
  if (conflicts(cell.write, me, epoch, atomic)) {
    report(cell.write, true, write, atomic, space, pc, buffer, variable, offset);
  }
  if (write) {
    if (conflicts(cell.read, me, epoch, atomic)) {
      report(cell.read, false, write, atomic, space, pc, buffer, variable, offset);
    } else if (conflicts(cell.read_other, me, epoch, atomic)) {
      report(cell.read_other, false, write, atomic, space, pc, buffer, variable, offset);
    }
    cell.write = now;
    return;
  }
  // Keep two readers: the latest, and the latest of another thread that a later write by the
  // first one could still race with. A reader of another simdgroup is kept before one of the same.
  if (cell.read.thread && cell.read.thread != me) {
    const bool same_simdgroup = (cell.read.thread - 1) / MH_LANES == (me - 1) / MH_LANES;
    const bool other_ordered = !conflicts(cell.read_other, me, epoch, false);
    if (!same_simdgroup || other_ordered) cell.read_other = cell.read;
  }
  cell.read = now;
}

}  // namespace mh

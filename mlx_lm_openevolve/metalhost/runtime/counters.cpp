#include "counters.h"

namespace mh {
void count_device(const Buffer&, Address, unsigned, bool, Address) {}
void count_threadgroup(uint64_t, unsigned, bool, Address) {}
void count_collective(unsigned, int) {}
void count_barrier() {}
void count_flush(Simdgroup&) {}
void count_group(unsigned) {}
void count_report() {}
}  // namespace mh

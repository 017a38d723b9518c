#pragma once
#include "memory.h"

namespace mh {
void count_device(const Buffer& buffer, Address address, unsigned size, bool write, Address pc);
void count_threadgroup(uint64_t offset, unsigned size, bool write, Address pc);
void count_collective(unsigned flops, int width);
void count_barrier();
void count_flush(Simdgroup& s);   // the simdgroup has come to a wait: pair its lanes' accesses
void count_group(unsigned threads);
void count_report();
}  // namespace mh

#pragma once
#include "memory.h"

namespace mh {
void count_start();
void count_device(unsigned buffer, Address address, unsigned size, bool write, Address pc);
void count_threadgroup(uint64_t offset, unsigned size, bool write, Address pc);
void count_collective(const char* name, unsigned flops);
void count_barrier();
void count_flush(const Simdgroup& s);  // it has come to a wait: pair its lanes' accesses
void count_group();                    // a threadgroup is done
void count_report();
}  // namespace mh

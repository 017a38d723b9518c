#pragma once
#include "memory.h"

namespace mh {
struct Announced {
  Address address;
  unsigned size;
  bool write, atomic;
  Address pc;
};
// Judges one access against the earlier ones of its cell, then records it. `buffer` is the
// argument's number, or -1 with the name of a threadgroup variable.
void race_check(Cell& cell, const Announced& access, int space, int buffer, const char* variable,
                uint64_t offset);
// Before anything else happens: whether the latest store, which nothing orders with another, has
// changed what was there.
void settle_store();
}  // namespace mh

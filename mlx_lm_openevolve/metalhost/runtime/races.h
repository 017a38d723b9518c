#pragma once
#include "memory.h"

namespace mh {
// Judges one access against the earlier ones of its cell, then records it. `buffer` is the
// argument's number, or -1 with the name of a threadgroup variable.
void race_check(Cell& cell, bool write, bool atomic, int space, Address pc, int buffer,
                const char* variable, uint64_t offset);
}  // namespace mh

#pragma once
#include "memory.h"

namespace mh {

// Threadgroup memory: one arena, in it the variables with red zones between.
constexpr unsigned kMaxVariables = 62;
constexpr unsigned kRedZone = 2048;
constexpr uint64_t kArena = kThreadgroupBytes + (kMaxVariables + 2) * uint64_t(kRedZone);
extern Address g_arena;

inline bool in_threadgroup_memory(Address address) { return address - g_arena < kArena; }

void make_threadgroup_memory();
void clear_threadgroup_memory();  // between threadgroups: poisoned, written by nobody
unsigned threadgroup_bytes_peak();
// Checks an access; returns its offset without the red zones.
unsigned access_threadgroup(Address address, unsigned size, bool write, bool atomic, Address pc);

}  // namespace mh

// Common declarations of the runtime. One process runs one launch, on one operating system
// thread, so that the state is plain globals.
#pragma once

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

namespace mh {

typedef uintptr_t Address;
constexpr unsigned kMaxThreads = 1024;  // of a threadgroup
constexpr unsigned kMaxBuffers = 64;
constexpr unsigned kThreadgroupBytes = 32768;  // Metal's limit on Apple GPUs

// --- the launch record, written by Python at the start of the shared file ----------------------
struct BufferRecord {
  uint64_t kind;         // BufferKind
  uint64_t offset;       // of the first byte in the file
  uint64_t size;         // bytes that the kernel may touch, from the lowest address
  uint64_t pointer;      // where the argument points, counted from the lowest address
  uint64_t gaps;         // offset of one byte a data byte (0: not readable), or 0: no gaps
  uint64_t flags;        // BufferFlags
  uint64_t granule;      // bytes of one element
};
enum BufferKind { kArray = 0, kThreadgroup = 1, kAbsent = 2 };
enum BufferFlags { kWritable = 1, kUnwritten = 2, kFloats = 4 };

struct LaunchRecord {
  uint64_t magic;
  uint64_t seed;
  uint64_t sanitize;
  uint64_t count;
  uint64_t grid[3];
  uint64_t group[3];
  uint64_t time_limit_ms;
  uint64_t memory_limit;
  uint64_t fill;         // the byte that fresh memory holds
  uint64_t confine;      // Confine
  uint64_t buffers;      // number of records that follow
  BufferRecord buffer[kMaxBuffers];
};
enum Confine { kFree = 0, kConfinedIfPossible = 1, kConfined = 2 };
constexpr uint64_t kMagic = 0x31304c4154454d48;

// --- small tools --------------------------------------------------------------------------------
void* reserve(size_t bytes);          // fresh zero pages
[[noreturn]] void die(const char* message);

struct Random {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  unsigned below(unsigned n) { return unsigned(next() % n); }
};

// --- threads ------------------------------------------------------------------------------------
enum class State : uint8_t { kReady, kCollective, kSimdBarrier, kBarrier, kDone };

struct Thread {
  MhPlace place;
  void* stack_pointer;
  Address stack_low, stack_high;
  State state;
  const char* wait_name;  // what it waits in, and where
  uint64_t wait_path;  // the calls that led there
  uint32_t wait_flags;
  Address wait_pc;
  MhCombine combine;
};

struct Simdgroup {
  Thread* lane[MH_LANES];
  uint8_t order[MH_LANES];  // the lanes in this schedule's order
  unsigned lanes;
  unsigned ready, collective, simd_barrier, barrier, done;  // bit sets over lanes
  uint16_t device_epoch, threadgroup_epoch;
  uint16_t met;   // collectives in which the whole simdgroup took part
  bool diverged;  // some lanes wait where others do not, and it is reported
  int width;
  unsigned flops;
  MhSlots slots;
};

extern LaunchRecord* g_launch;
extern Thread* g_thread;        // the running thread
extern Simdgroup* g_simdgroups;
extern unsigned g_simdgroup_count;
extern uint32_t g_group_index;  // linear index of the running threadgroup
extern uint16_t g_barrier_epoch_device, g_barrier_epoch_threadgroup, g_barriers;

inline uint32_t thread_number() {
  return g_group_index * kMaxThreads + g_thread->place.index_in_group + 1;
}

}  // namespace mh

#define MH_PC (reinterpret_cast<mh::Address>(__builtin_return_address(0)))

// What a compiled kernel and the runtime know of each other. Both sides include this file; it
// uses no library header, because the kernel side is compiled without any.
#pragma once

// Where one thread stands in the grid: the source of every [[attribute]] of a kernel.
struct MhPlace {
  unsigned thread_in_grid[3];
  unsigned thread_in_group[3];
  unsigned group_in_grid[3];
  unsigned threads_in_group[3];       // of this threadgroup: smaller at the grid's edge
  unsigned full_threads_in_group[3];  // as dispatched
  unsigned threads_in_grid[3];
  unsigned groups_in_grid[3];
  unsigned index_in_group;
  unsigned lane;
  unsigned simdgroup;
  unsigned simdgroups;
  unsigned full_simdgroups;
};

enum MhSpace { MH_DEVICE = 0, MH_CONSTANT = 1, MH_THREADGROUP = 2 };

// Fences of a barrier: which memory it orders (the values of metal::mem_flags).
enum MhFlags { MH_FENCE_DEVICE = 1, MH_FENCE_THREADGROUP = 2 };

enum MhAtomicKind { MH_ATOMIC_LOAD = 0, MH_ATOMIC_STORE = 1, MH_ATOMIC_MODIFY = 2 };

// Slots of a collective: one input and one output of at most MH_SLOT bytes a lane.
enum { MH_LANES = 32, MH_SLOT = 32 };
struct MhSlots {
  unsigned present;  // the lanes that take part
  alignas(32) unsigned char in[MH_LANES][MH_SLOT];
  alignas(32) unsigned char out[MH_LANES][MH_SLOT];
};
typedef void (*MhCombine)(MhSlots* slots);

extern "C" {
// --- defined by the kernel -------------------------------------------------------------------
void mh_signature();  // declares the arguments, once, through mh_declare
void mh_entry();      // runs the kernel for the current thread

// --- defined by the runtime ------------------------------------------------------------------
const MhPlace* mh_place();
unsigned mh_lane();
void mh_declare(int index, int space, unsigned element_size, bool read_only);
void* mh_argument(int index);
void* mh_threadgroup_variable(const void* key, unsigned long size, unsigned long align,
                              const char* name);
// Waits. Each call keeps its place: calls in two branches are never merged into one behind them.
__attribute__((nomerge)) void mh_barrier(unsigned flags);
__attribute__((nomerge)) void mh_simdgroup_barrier(unsigned flags);
// Every lane of the simdgroup posts `size` bytes; the last to come runs `combine` for all.
// This lane's `out_size` bytes of the result go to `out`. `width` is 32, or 4 for a quadgroup.
// `flops` are those of the whole simdgroup.
__attribute__((nomerge)) void mh_collective(const char* name, const void* in, unsigned in_size,
                                            void* out, unsigned out_size, MhCombine combine,
                                            int width, unsigned flops);
// A shuffle was called with a `modulo` that Metal does not define.
void mh_bad_modulo(const char* name, unsigned modulo);
// Count mode: a basic block of `instructions` instructions and `flops` floating-point operations.
void mh_block(unsigned id, unsigned instructions, unsigned flops);
// A number for the iterations that the running thread is in, of the loops around it. Its address
// space is one that the thread sanitizer does not announce.
extern __attribute__((address_space(1))) unsigned long mh_turns;
// The access of an atomic operation, checked and counted; the kernel then performs it.
void mh_atomic(const volatile void* address, unsigned size, int kind);
}

// Fibers: one stack for each thread of a threadgroup and a switch that saves what the calling
// convention preserves. Signals are left alone, so that a switch costs some 20 ns.
#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

namespace mh {

namespace {
constexpr size_t kStack = 256 * 1024;
char* g_stacks;
size_t g_guard;
}  // namespace

// mh_switch(save, load): stores the stack pointer in *save and continues at the stack `load`.
// A fresh stack holds zeros for the saved registers and the entry as its return address.
#if defined(__APPLE__)
#define MH_SYMBOL "_mh_switch"
#else
#define MH_SYMBOL "mh_switch"
#endif
#if defined(__x86_64__)
asm(".text\n.globl " MH_SYMBOL "\n" MH_SYMBOL ":\n"
    R"(
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
asm(".text\n.globl " MH_SYMBOL "\n.p2align 2\n" MH_SYMBOL ":\n"
    R"(
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "metalhost runs on x86-64 and arm64"
#endif

void make_stacks(unsigned count) {
  g_guard = size_t(sysconf(_SC_PAGESIZE));
  const size_t bytes = count * (kStack + g_guard);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) die("no memory for the threads' stacks");
  g_stacks = static_cast<char*>(p);
  for (unsigned i = 0; i < count; ++i) {
    mprotect(g_stacks + i * (kStack + g_guard), g_guard, PROT_NONE);
  }
}

void prepare_stack(Thread& thread, unsigned index, void (*entry)()) {
  char* low = g_stacks + index * (kStack + g_guard) + g_guard;
  thread.stack_low = Address(low);
  thread.stack_high = Address(low) + kStack;
  void** top = reinterpret_cast<void**>(low + kStack);
#if defined(__x86_64__)
  // The stack pointer is 16 n + 8 at a function's first instruction.
  top -= 2;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  thread.stack_pointer = top;
}

bool in_stack_guard(Address address) {
  const Address base = Address(g_stacks);
  if (!g_stacks || address < base) return false;
  const size_t offset = address - base;
  return offset < kMaxThreads * (kStack + g_guard) && offset % (kStack + g_guard) < g_guard;
}

}  // namespace mh

// The fibers behind cuda_on_cpu.h: a switch of stacks, and who runs next. x86-64 only.
#include "cuda_on_cpu.h"

#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" {
extern char __start_block_shared[] __attribute__((weak));
extern char __stop_block_shared[] __attribute__((weak));
void switch_stacks(void** from, void* to);
}

asm(R"(
.globl switch_stacks
switch_stacks:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

namespace fibers {

Fiber* fiber;
Fiber* all;
int arrived[32];
uint3 block, threads, blocks;

static constexpr size_t STACK = 128 << 10;
static void* scheduler;
static int count, at_barrier, barrier_line, votes;
static void (*body)(void**);
static void** arguments;
static uint32_t random_state;

static uint32_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

static std::string failure;

// The stage ends here, for all threads.
void fail(const char* what) {
  char place[96];
  snprintf(place, sizeof place, ": block %u %u %u, thread %u, line %d", block.x, block.y, block.z,
           fiber->thread.x, fiber->line);
  failure = what + std::string(place);
  for (;;) switch_stacks(&fiber->stack, scheduler);
}

void wait(State state) {
  fiber->state = state;
  while (fiber->state == state) switch_stacks(&fiber->stack, scheduler);
}

void barrier(int line) {
  fiber->line = line;
  fiber->what = "barrier";
  if (at_barrier == 0) barrier_line = line;
  if (barrier_line != line) fail("threads of a block are at different barriers");
  if (++at_barrier < count) return wait(AT_BARRIER);
  at_barrier = 0;
  for (int i = 0; i < count; ++i) all[i].state = RUNS;
}

int vote(bool mine, int line) {
  votes += mine;
  barrier(line);
  const int found = votes;
  barrier(line);
  votes = 0;
  barrier(line);
  return found > 0;
}

static void start() {
  body(arguments);
  for (;;) wait(DONE);
}

static void run_block(std::vector<char*>& stacks) {
  for (char* at = __start_block_shared; at + 4 <= __stop_block_shared; at += 4) {
    const uint32_t nan = 0x7fc17fc1;  // as a float and as two 16-bit ones
    memcpy(at, &nan, 4);
  }
  at_barrier = votes = 0;
  std::fill_n(arrived, 32, 0);
  for (int i = 0; i < count; ++i) {
    all[i] = Fiber();
    all[i].thread = {unsigned(i), 0, 0};
    all[i].warp = i / 32;
    void** top = reinterpret_cast<void**>(stacks[i] + STACK - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(start);
    all[i].stack = top - 6;
    std::fill_n(top - 6, 6, nullptr);
  }
  // In turns, or with one warp ahead as far as it may, or with one that goes on only where no
  // other can: what is read before it is ready, or written too early, shows in one of them.
  const int warps = count / 32;
  const enum { TURNS, AHEAD, BEHIND } pace = decltype(pace)(random_bits() % 3);
  const int odd = random_bits() % warps;
  bool stuck = false;
  for (int live = count; live > 0 && failure.empty();) {
    bool moved = false;
    const uint32_t first = random_bits(), flip = random_bits();
    for (int w = 0; w < warps; ++w) {
      const int warp = (w + first) % warps;
      int turns = 1 + random_bits() % 8;
      if (warp == odd && pace == AHEAD) turns = 1 << 20;
      if (warp == odd && pace == BEHIND && !stuck) continue;
      Fiber* lanes = all + warp * 32;
      for (bool went = true; went && turns > 0; --turns) {
        went = false;
        for (uint32_t i = 0; i < 32; ++i) {
          fiber = lanes + (i ^ (flip & 31));
          if (fiber->state != RUNS) continue;
          switch_stacks(&scheduler, fiber->stack);
          went = moved = true;
          live -= fiber->state == DONE;
          if (!failure.empty()) return;
        }
      }
    }
    if (!moved && (stuck || pace != BEHIND)) failure = "no thread can go on";
    stuck = !moved;
  }
}

}  // namespace fibers

// Runs `body(arguments)` in every thread of the grid; grid and block count threads, as MLX does.
// Returns what went wrong, "" where nothing did.
extern "C" const char* run_grid(void (*body)(void**), void** arguments, const unsigned* grid,
                                const unsigned* block, unsigned seed) {
  using namespace fibers;
  fibers::body = body;
  fibers::arguments = arguments;
  random_state = seed * 2654435761u + 12345;
  count = block[0];
  threads = {block[0], block[1], block[2]};
  blocks = {grid[0] / block[0], grid[1] / block[1], grid[2] / block[2]};
  std::vector<Fiber> room(count);
  all = room.data();
  std::vector<char*> stacks(count);
  for (char*& stack : stacks) stack = static_cast<char*>(aligned_alloc(64, STACK));
  std::vector<unsigned> order(blocks.x * blocks.y * blocks.z);
  for (unsigned i = 0; i < order.size(); ++i) {
    const unsigned other = random_bits() % (i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  failure.clear();
  for (unsigned i : order) {
    if (!failure.empty()) break;
    fibers::block = {i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y};
    run_block(stacks);
  }
  for (char* stack : stacks) free(stack);
  return failure.c_str();
}

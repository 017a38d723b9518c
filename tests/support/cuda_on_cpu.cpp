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

// What is a block's own; its shared memory lies in `shared` while another block runs.
struct Block {
  uint3 index;
  std::vector<Fiber> fibers;
  std::vector<char*> stacks;
  std::vector<char> shared;
  int arrived[32], at_barrier, barrier_line, votes, live, odd;
  enum { TURNS, AHEAD, BEHIND } pace;
  bool stuck;
};

Fiber* fiber;
Fiber* all;
int* arrived;
uint3 block, threads, blocks;

static constexpr size_t STACK = 128 << 10;
static void* scheduler;
static Block* current;
static int count;
static unsigned chip;  // so many processors it has
static bool resting;
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

void rest(int chance) {
  if (random_bits() % chance) return;
  resting = true;
  switch_stacks(&fiber->stack, scheduler);
}

unsigned processors() { return chip; }

void barrier(int line) {
  fiber->line = line;
  fiber->what = "barrier";
  if (current->at_barrier == 0) current->barrier_line = line;
  if (current->barrier_line != line) fail("threads of a block are at different barriers");
  if (++current->at_barrier < count) return wait(AT_BARRIER);
  current->at_barrier = 0;
  for (int i = 0; i < count; ++i) all[i].state = RUNS;
}

int vote(bool mine, int line) {
  current->votes += mine;
  barrier(line);
  const int found = current->votes;
  barrier(line);
  current->votes = 0;
  barrier(line);
  return found > 0;
}

static void start() {
  body(arguments);
  for (;;) wait(DONE);
}

static void begin(Block& b, unsigned number) {
  b.index = {number % blocks.x, number / blocks.x % blocks.y, number / blocks.x / blocks.y};
  const uint32_t nan = 0x7fc17fc1;  // as a float and as two 16-bit ones
  b.shared.resize(__stop_block_shared - __start_block_shared);
  for (size_t at = 0; at + 4 <= b.shared.size(); at += 4) memcpy(&b.shared[at], &nan, 4);
  b.at_barrier = b.votes = 0;
  std::fill_n(b.arrived, 32, 0);
  b.fibers.assign(count, Fiber());
  for (int i = 0; i < count; ++i) {
    b.fibers[i].thread = {unsigned(i), 0, 0};
    b.fibers[i].warp = i / 32;
    void** top = reinterpret_cast<void**>(b.stacks[i] + STACK - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(start);
    b.fibers[i].stack = top - 6;
    std::fill_n(top - 6, 6, nullptr);
  }
  // In turns, or with one warp ahead as far as it may, or with one that goes on only where no
  // other can: what is read before it is ready, or written too early, shows in one of them.
  b.pace = decltype(b.pace)(random_bits() % 3);
  b.odd = random_bits() % (count / 32);
  b.stuck = false;
  b.live = count;
}

// Until the block ends or rests.
static void go_on(Block& b) {
  current = &b;
  all = b.fibers.data();
  arrived = b.arrived;
  block = b.index;
  std::copy(b.shared.begin(), b.shared.end(), __start_block_shared);
  const int warps = count / 32;
  for (resting = false; b.live > 0 && !resting && failure.empty();) {
    bool moved = false;
    const uint32_t first = random_bits(), flip = random_bits();
    for (int w = 0; w < warps; ++w) {
      const int warp = (w + first) % warps;
      int turns = 1 + random_bits() % 8;
      if (warp == b.odd && b.pace == Block::AHEAD) turns = 1 << 20;
      if (warp == b.odd && b.pace == Block::BEHIND && !b.stuck) continue;
      Fiber* lanes = all + warp * 32;
      for (bool went = true; went && turns > 0 && !resting; --turns) {
        went = false;
        for (uint32_t i = 0; i < 32; ++i) {
          fiber = lanes + (i ^ (flip & 31));
          if (fiber->state != RUNS) continue;
          switch_stacks(&scheduler, fiber->stack);
          went = moved = true;
          b.live -= fiber->state == DONE;
          if (!failure.empty()) return;
        }
      }
    }
    if (!moved && (b.stuck || b.pace != Block::BEHIND)) failure = "no thread can go on";
    b.stuck = !moved;
  }
  std::copy_n(__start_block_shared, b.shared.size(), b.shared.begin());
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
  std::vector<unsigned> left(blocks.x * blocks.y * blocks.z);
  for (unsigned i = 0; i < left.size(); ++i) {
    const unsigned other = random_bits() % (i + 1);
    left[i] = left[other];
    left[other] = i;
  }
  // So many blocks run at a time; with an odd seed the chip has more processors.
  const size_t at_a_time = 1 + random_bits() % 8;
  chip = seed % 2 ? 1 << 10 : at_a_time;
  std::vector<Block> room(std::min(at_a_time, left.size()));
  std::vector<Block*> idle, busy;
  for (Block& b : room) {
    for (int i = 0; i < count; ++i) {
      b.stacks.push_back(static_cast<char*>(aligned_alloc(64, STACK)));
    }
    idle.push_back(&b);
  }
  failure.clear();
  while (failure.empty() && !(left.empty() && busy.empty())) {
    const bool more = !left.empty() && !idle.empty();
    size_t which = random_bits() % (busy.size() + more);
    if (which == busy.size()) {
      busy.push_back(idle.back());
      idle.pop_back();
      begin(*busy.back(), left.back());
      left.pop_back();
    }
    go_on(*busy[which]);
    if (busy[which]->live == 0) {
      idle.push_back(busy[which]);
      busy.erase(busy.begin() + which);
    }
  }
  for (Block& b : room) {
    for (char* stack : b.stacks) free(stack);
  }
  return failure.c_str();
}

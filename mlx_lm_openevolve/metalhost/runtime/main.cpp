// The program that a compiled kernel becomes: reads the launch record from the file given as
// descriptor 0, runs the grid, reports on standard output.
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "confine.h"
#include "counters.h"
#include "fibers.h"
#include "memory.h"
#include "report.h"
#include "schedule.h"

namespace mh {
LaunchRecord* g_launch;

static void limit(int what, uint64_t value) {
  struct rlimit r;
  r.rlim_cur = r.rlim_max = rlim_t(value);
  setrlimit(what, &r);
}

// What the launch's arrays take; their shadows are at most some thirty times as large.
static uint64_t buffer_bytes() {
  uint64_t total = 0;
  for (unsigned i = 0; i < g_launch->buffers; ++i) total += g_launch->buffer[i].size;
  return total;
}

// Sets an end to the memory of data, and to addresses, whose tables take memory too. The slots of
// the arrays are such addresses (map_buffers).
static void limit_memory() {
  const uint64_t data = (1ull << 30) + 32 * buffer_bytes();
  uint64_t largest = 0;
  for (unsigned i = 0; i < g_launch->buffers; ++i) {
    if (g_launch->buffer[i].size > largest) largest = g_launch->buffer[i].size;
  }
  const uint64_t slot = largest < (8u << 20) ? 64u << 20 : 8 * largest + (1u << 20);
  limit(RLIMIT_DATA, data);
  limit(RLIMIT_AS, data + g_launch->buffers * slot + 4 * buffer_bytes() + (256u << 20));
}

static double now() {
  struct timeval t;
  gettimeofday(&t, nullptr);
  return double(t.tv_sec) + double(t.tv_usec) * 1e-6;
}

}  // namespace mh

int main() {
  using namespace mh;
  void* head = mmap(nullptr, sizeof(LaunchRecord), PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, 0);
  if (head == MAP_FAILED) die("no launch record");
  g_launch = static_cast<LaunchRecord*>(head);
  if (g_launch->magic != kMagic || g_launch->buffers > kMaxBuffers) die("bad launch record");
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_FSIZE, 0);
  limit(RLIMIT_CPU, g_launch->time_limit_ms / 1000 + 2);
  limit_memory();
  watch(g_launch->time_limit_ms);
  if (g_launch->confine != kFree && !confine() && g_launch->confine == kConfined) {
    print("unconfined\n");
    finish();
  }
  mh_signature();  // the first code of the kernel
  const double start = now();
  map_buffers(0);
  if (g_launch->count) count_start();
  run_grid();
  if (g_launch->sanitize) report_outputs();
  if (g_launch->count) count_report();
  print("seconds\t%.6f\n", now() - start);
  finish();
}

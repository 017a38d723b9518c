// Threadgroup variables: where they lie, and the checks of an access to one.
#include "threadgroup.h"

#include <string.h>

#include "races.h"
#include "report.h"

namespace mh {

Address g_arena;

namespace {

struct Variable {  // of threadgroup memory
  const void* key;
  const char* name;
  Address low;
  uint64_t size;
  unsigned packed;  // offset without the red zones
};

uint64_t g_arena_used;
uint8_t* g_owner;  // one byte an arena byte: the variable's number + 1, 0 in red zones
Cell* g_arena_cells;
Variable g_variables[kMaxVariables];
unsigned g_variable_count;
uint64_t g_packed_bytes;
uint64_t g_peak_bytes;

}  // namespace

void make_threadgroup_memory() {
  g_arena = Address(reserve(kArena));
  g_owner = static_cast<uint8_t*>(reserve(kArena));
  g_arena_cells = static_cast<Cell*>(reserve(kArena * sizeof(Cell)));
}

void clear_threadgroup_memory() {
  if (g_arena_used == 0) return;
  for (unsigned i = 0; i < g_variable_count; ++i) {
    const Variable& v = g_variables[i];
    memset(reinterpret_cast<void*>(v.low), int(g_launch->fill), v.size);
    memset(g_owner + (v.low - g_arena), 0, v.size);
    if (g_launch->sanitize || g_launch->count) {
      memset(g_arena_cells + (v.low - g_arena), 0, v.size * sizeof(Cell));
    }
  }
  g_variable_count = 0;
  g_arena_used = 0;
  g_packed_bytes = 0;
}

unsigned threadgroup_bytes_peak() { return unsigned(g_peak_bytes); }

unsigned access_threadgroup(Address address, unsigned size, bool write, bool atomic, Address pc) {
  const uint64_t at = address - g_arena;
  const uint8_t owner = g_owner[at];
  bool inside = owner != 0;
  for (unsigned i = 1; i < size; ++i) inside = inside && g_owner[at + i] == owner;
  if (!inside) {
    // Name the variable that the address is nearest to.
    const Variable* nearest = nullptr;
    uint64_t best = ~0ull;
    for (unsigned i = 0; i < g_variable_count; ++i) {
      const Variable& v = g_variables[i];
      const uint64_t distance = address < v.low ? v.low - address : address - v.low - v.size + 1;
      if (address >= v.low && address < v.low + v.size) { nearest = &v; break; }
      if (distance < best) { best = distance; nearest = &v; }
    }
    Finding f("out-of-bounds");
    f.pc("pc", pc).text("access", access_name(write, atomic)).number("size", size);
    f.text("space", "threadgroup").text("why", "end");
    if (nearest) {
      f.text("variable", nearest->name);
      f.number("offset", (long long)(address - nearest->low));
      f.number("extent", (long long)nearest->size);
    } else {
      f.number("address", (long long)address);
    }
    f.thread("thread", thread_number()).fatal();
  }
  const Variable& v = g_variables[owner - 1];
  for (unsigned i = 0; i < size; ++i) {
    Cell& cell = g_arena_cells[at + i];
    if (!write && cell.write.thread == 0) {
      if (!g_pending.thread) {
        g_pending = {thread_number(), size, address, pc, MH_THREADGROUP, -1, v.name,
                     (long long)(address - v.low)};
      }
    }
    if (g_launch->sanitize) {
      race_check(cell, {address, size, write, atomic, pc}, MH_THREADGROUP, -1, v.name,
                 address + i - v.low);
    } else if (write) cell.write.thread = 1;
  }
  return unsigned(v.packed + (address - v.low));
}

}  // namespace mh

extern "C" void* mh_threadgroup_variable(const void* key, unsigned long size, unsigned long align,
                                         const char* name) {
  using namespace mh;
  for (unsigned i = 0; i < g_variable_count; ++i) {
    if (g_variables[i].key == key) return reinterpret_cast<void*>(g_variables[i].low);
  }
  const uint64_t padded = (size + 15) / 16 * 16;
  if (g_variable_count == kMaxVariables) die("more than 62 threadgroup variables");
  if (size > kThreadgroupBytes || g_packed_bytes + padded > kThreadgroupBytes) {
    Finding("threadgroup-memory").text("variable", name)
        .number("size", (long long)(g_packed_bytes + size)).number("extent", kThreadgroupBytes)
        .pc("pc", MH_PC).fatal();
  }
  Variable& v = g_variables[g_variable_count];
  v.key = key;
  v.name = name;
  v.size = size;
  v.packed = unsigned(g_packed_bytes);
  v.low = (g_arena + g_arena_used + kRedZone + align - 1) / 16 * 16;
  g_arena_used = v.low + padded - g_arena;
  g_packed_bytes += padded;
  if (g_packed_bytes > g_peak_bytes) g_peak_bytes = g_packed_bytes;
  memset(g_owner + (v.low - g_arena), int(g_variable_count + 1), size);
  ++g_variable_count;
  memset(reinterpret_cast<void*>(v.low), int(g_launch->fill), size);
  return reinterpret_cast<void*>(v.low);
}

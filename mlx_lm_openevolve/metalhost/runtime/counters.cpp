// Counts what a launch does. The lanes of a simdgroup run one after another; between two waits
// each lane's accesses are logged, and at the wait they are put side by side again: the lanes
// whose next access has the lowest program counter go first, as a GPU would run them. Contiguous
// accesses of every lane merge into one of up to 16 bytes, as a GPU's compiler merges them.
#include "counters.h"

#include <string.h>

#include "report.h"
#include "threadgroup.h"

namespace mh {

namespace {

struct Entry {
  Address address;   // of threadgroup memory: the offset without red zones
  uint32_t pc;
  uint8_t size;
  uint8_t write;
  int16_t buffer;    // -1: threadgroup memory
};
constexpr unsigned kLog = 1u << 19;  // accesses of one lane between two waits
Entry* g_log[MH_LANES];
unsigned g_logged[MH_LANES];
bool g_truncated;

// One access of a whole simdgroup.
struct Access {
  uint32_t lanes;
  unsigned size;
  int buffer;
  bool write;
  Address address[MH_LANES];
};
constexpr unsigned kOpen = 8;  // accesses that a later one may still extend
Access g_open[kOpen];
unsigned g_open_count;

struct Totals {
  uint64_t bytes[2], lines[2], useful[2], accesses[2];  // of device memory: [0] read, [1] written
  uint64_t group_bytes[2], group_accesses, group_cycles, conflicts;
  uint64_t barriers, simdgroup_barriers, reductions, shuffles, votes, scans, matrices;
  uint64_t flops, instructions, slots;
  uint64_t threadgroups, threads;
} g_total;

// Count mode's own copy of each buffer's touched bytes, one bit each.
uint8_t* g_bits[kMaxBuffers][2];

// What was read of each buffer.
struct { uint64_t bytes, useful; } g_reads[kMaxBuffers];

struct Block {
  uint32_t runs[MH_LANES];
};
constexpr unsigned kBlocks = 1u << 14;
Block* g_blocks;  // [simdgroup][block]
uint32_t g_weight[kBlocks];
unsigned g_block_count;

void close_device(const Access& a) {
  // Distinct bytes and 128-byte lines: sort the lanes' intervals by address.
  Address start[MH_LANES];
  unsigned n = 0;
  for (uint32_t bits = a.lanes; bits; bits &= bits - 1) {
    const Address x = a.address[__builtin_ctz(bits)];
    unsigned k = n++;
    for (; k > 0 && start[k - 1] > x; --k) start[k] = start[k - 1];
    start[k] = x;
  }
  uint64_t useful = 0, lines = 0;
  Address covered = 0, last_line = ~Address(0);
  for (unsigned i = 0; i < n; ++i) {
    const Address from = start[i] < covered ? covered : start[i], to = start[i] + a.size;
    if (to <= from) continue;
    useful += to - from;
    covered = to;
    for (Address line = from / 128; line <= (to - 1) / 128; ++line) {
      if (line != last_line) ++lines;
      last_line = line;
    }
  }
  g_total.useful[a.write] += useful;
  if (!a.write) g_reads[a.buffer].useful += useful;
  g_total.lines[a.write] += lines;
  ++g_total.accesses[a.write];
}

void close_threadgroup(const Access& a) {
  // 32 banks of 4 bytes; lanes that want the same word share it.
  uint64_t words[MH_LANES * 4];
  unsigned n = 0;
  for (uint32_t bits = a.lanes; bits; bits &= bits - 1) {
    const Address x = a.address[__builtin_ctz(bits)];
    for (uint64_t w = x / 4; w <= (x + a.size - 1) / 4; ++w) {
      unsigned k = 0;
      while (k < n && words[k] != w) ++k;
      if (k == n && n < MH_LANES * 4) words[n++] = w;
    }
  }
  unsigned bank[32] = {0}, worst = 0;
  for (unsigned k = 0; k < n; ++k) {
    const unsigned used = ++bank[words[k] % 32];
    if (used > worst) worst = used;
  }
  const unsigned least = (n + 31) / 32;
  ++g_total.group_accesses;
  g_total.group_cycles += worst;
  g_total.conflicts += worst - least;
}

void close(const Access& a) {
  if (a.buffer < 0) close_threadgroup(a); else close_device(a);
}

void close_all() {
  for (unsigned i = 0; i < g_open_count; ++i) close(g_open[i]);
  g_open_count = 0;
}

bool extends(const Access& a, const Access& next) {
  if (a.lanes != next.lanes || a.buffer != next.buffer || a.write != next.write) return false;
  if (a.size + next.size > 16) return false;
  for (uint32_t bits = a.lanes; bits; bits &= bits - 1) {
    const unsigned k = unsigned(__builtin_ctz(bits));
    if (next.address[k] != a.address[k] + a.size) return false;
  }
  return true;
}

void add(const Access& next) {
  for (unsigned i = 0; i < g_open_count; ++i) {
    if (extends(g_open[i], next)) {
      g_open[i].size += next.size;
      return;
    }
  }
  if (g_open_count == kOpen) {
    close(g_open[0]);
    memmove(g_open, g_open + 1, (kOpen - 1) * sizeof(Access));
    --g_open_count;
  }
  g_open[g_open_count++] = next;
}

void log(Address address, unsigned size, bool write, int buffer, Address pc) {
  const unsigned lane = g_thread->place.lane;
  if (g_logged[lane] == kLog) {
    g_truncated = true;
    return;
  }
  g_log[lane][g_logged[lane]++] = {address, pack_pc(pc), uint8_t(size), write, int16_t(buffer)};
}

bool starts_with(const char* name, const char* prefix) {
  return strncmp(name, prefix, strlen(prefix)) == 0;
}

uint64_t count_bits(const uint8_t* bits, uint64_t bytes) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < bytes; ++i) n += unsigned(__builtin_popcount(bits[i]));
  return n;
}

}  // namespace

void count_start() {
  for (unsigned k = 0; k < MH_LANES; ++k) {
    g_log[k] = static_cast<Entry*>(reserve(kLog * sizeof(Entry)));
  }
  g_blocks = static_cast<Block*>(reserve(uint64_t(kMaxThreads / MH_LANES) * kBlocks * sizeof(Block)));
  for (unsigned i = 0; i < g_buffer_count; ++i) {
    if (!g_buffers[i].present || g_buffers[i].constant) continue;
    for (int w = 0; w < 2; ++w) {
      g_bits[i][w] = static_cast<uint8_t*>(reserve(g_buffers[i].size / 8 + 8));
    }
  }
}

void count_device(unsigned buffer, Address address, unsigned size, bool write, Address pc) {
  const Buffer& b = g_buffers[buffer];
  if (b.constant) return;
  const uint64_t offset = address - b.low;
  g_total.bytes[write] += size;
  if (!write) g_reads[buffer].bytes += size;
  uint8_t* bits = g_bits[buffer][write];
  for (uint64_t i = offset; i < offset + size; ++i) bits[i >> 3] |= uint8_t(1u << (i & 7));
  log(address, size, write, int(buffer), pc);
}

void count_threadgroup(uint64_t offset, unsigned size, bool write, Address pc) {
  g_total.group_bytes[write] += size;
  log(offset, size, write, -1, pc);
}

void count_collective(const char* name, unsigned flops) {
  const char* rest = strchr(name, '_');
  g_total.flops += flops;
  if (starts_with(name, "simdgroup_barrier")) ++g_total.simdgroup_barriers;
  else if (starts_with(name, "simdgroup_")) ++g_total.matrices;
  else if (!rest) return;
  else if (strstr(rest, "shuffle") || strstr(rest, "broadcast")) ++g_total.shuffles;
  else if (strstr(rest, "prefix")) ++g_total.scans;
  else if (strstr(rest, "all") || strstr(rest, "any") || strstr(rest, "ballot") ||
           strstr(rest, "active")) ++g_total.votes;
  else ++g_total.reductions;
}

void count_barrier() { ++g_total.barriers; }

void count_flush(const Simdgroup& s) {
  unsigned at[MH_LANES] = {0};
  for (;;) {
    uint32_t lowest = ~0u;
    for (unsigned k = 0; k < s.lanes; ++k) {
      if (at[k] < g_logged[k] && g_log[k][at[k]].pc < lowest) lowest = g_log[k][at[k]].pc;
    }
    if (lowest == ~0u) break;
    Access next;
    next.lanes = 0;
    for (unsigned k = 0; k < s.lanes; ++k) {
      if (at[k] >= g_logged[k]) continue;
      const Entry& e = g_log[k][at[k]];
      if (e.pc != lowest) continue;
      if (next.lanes == 0) {
        next.size = e.size;
        next.buffer = e.buffer;
        next.write = e.write;
      } else if (e.size != next.size || e.buffer != next.buffer || e.write != next.write) {
        continue;  // goes in a round of its own
      }
      next.lanes |= 1u << k;
      next.address[k] = e.address;
      ++at[k];
    }
    add(next);
  }
  close_all();
  memset(g_logged, 0, sizeof g_logged);
}

void count_group() {
  ++g_total.threadgroups;
  for (unsigned g = 0; g < g_simdgroup_count; ++g) {
    const Simdgroup& s = g_simdgroups[g];
    g_total.threads += s.lanes;
    for (unsigned b = 0; b < g_block_count; ++b) {
      Block& block = g_blocks[g * kBlocks + b];
      uint64_t most = 0, sum = 0;
      for (unsigned k = 0; k < s.lanes; ++k) {
        sum += block.runs[k];
        if (block.runs[k] > most) most = block.runs[k];
      }
      if (!most) continue;
      g_total.instructions += sum * g_weight[b];
      g_total.slots += most * s.lanes * g_weight[b];
      memset(&block, 0, sizeof block);
    }
  }
}

void count_report() {
  uint64_t distinct[2] = {0, 0};
  for (unsigned i = 0; i < g_buffer_count; ++i) {
    for (int w = 0; w < 2; ++w) {
      if (!g_bits[i][w]) continue;
      const uint64_t touched = count_bits(g_bits[i][w], g_buffers[i].size / 8 + 8);
      distinct[w] += touched;
      if (w || !touched) continue;
      print("read\t%u\t%llu\t%llu\t%llu\n", i, (unsigned long long)g_reads[i].bytes,
            (unsigned long long)touched, (unsigned long long)g_reads[i].useful);
    }
  }
  const Totals& t = g_total;
  struct { const char* name; uint64_t value; } rows[] = {
      {"device_read_bytes", t.bytes[0]}, {"device_write_bytes", t.bytes[1]},
      {"compulsory_read_bytes", distinct[0]}, {"compulsory_write_bytes", distinct[1]},
      {"read_lines", t.lines[0]}, {"write_lines", t.lines[1]},
      {"read_useful_bytes", t.useful[0]}, {"write_useful_bytes", t.useful[1]},
      {"read_accesses", t.accesses[0]}, {"write_accesses", t.accesses[1]},
      {"threadgroup_read_bytes", t.group_bytes[0]}, {"threadgroup_write_bytes", t.group_bytes[1]},
      {"threadgroup_accesses", t.group_accesses}, {"threadgroup_cycles", t.group_cycles},
      {"bank_conflicts", t.conflicts}, {"threadgroup_memory", threadgroup_bytes_peak()},
      {"barriers", t.barriers}, {"simdgroup_barriers", t.simdgroup_barriers},
      {"simd_reductions", t.reductions}, {"simd_shuffles", t.shuffles}, {"simd_votes", t.votes},
      {"simd_scans", t.scans}, {"matrix_multiplies", t.matrices}, {"flops", t.flops},
      {"instructions", t.instructions}, {"issue_slots", t.slots},
      {"threadgroups", t.threadgroups}, {"threads", t.threads}, {"truncated", g_truncated},
  };
  for (const auto& row : rows) print("count\t%s\t%llu\n", row.name, (unsigned long long)row.value);
}

}  // namespace mh

extern "C" void mh_block(unsigned id, unsigned instructions, unsigned flops) {
  using namespace mh;
  g_total.flops += flops;
  if (id >= kBlocks || !g_blocks) return;
  g_weight[id] = instructions;
  if (id >= g_block_count) g_block_count = id + 1;
  ++g_blocks[g_thread->place.simdgroup * kBlocks + id].runs[g_thread->place.lane];
}

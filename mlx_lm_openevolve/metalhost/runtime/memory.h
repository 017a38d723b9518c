#pragma once
#include "base.h"

namespace mh {

// Who last touched one granule of writable memory. Thread numbers start at 1: 0 is nobody.
struct Touch {
  uint32_t thread, pc, epoch;  // epoch: of the barriers that fence this memory
  uint16_t met;                // threadgroup barriers so far, whatever they fence,
  uint16_t met_simd : 14;      // and collectives of the whole simdgroup
  uint16_t atomic : 1;
};
struct Cell {
  Touch write, read, read_other;  // read_other: the last reader of another simdgroup than read
  Touch write_other;  // another thread that stored the same value, with nothing between them
};

struct Buffer {
  Address low;        // first byte that belongs to it
  uint64_t size;
  Address argument;   // what the kernel gets
  const uint8_t* gaps;
  Cell* cells;        // of writable buffers, one a granule
  uint8_t* written;   // count mode and unwritten outputs: one byte a granule
  unsigned granule_shift;
  bool present, writable, unwritten, constant, floats;
};

// A store to some components of a vector reads the vector, sets them and writes it back. So a read
// of fresh memory is held until the thread's next access tells whether that is the write.
struct PendingRead {
  uint32_t thread;
  unsigned size;
  Address address, pc;
  int space;
  int buffer;
  const char* variable;
  long long offset;
};

extern Buffer g_buffers[kMaxBuffers];
extern unsigned g_buffer_count;
extern PendingRead g_pending;
extern const unsigned char* g_stored;  // what a part of a copy stores, as it is not done yet

void map_buffers(int file);
const char* access_name(bool write, bool atomic);
// Every access of a sanitised or counted kernel comes through here.
void access(Address address, unsigned size, bool write, bool atomic, bool aligned, Address pc);
// `stored`: the bytes of a write.
void access_range(Address address, uint64_t size, bool write, Address pc,
                  const unsigned char* stored = nullptr);
void report_outputs();  // elements never written, values that come from nowhere

}  // namespace mh

#pragma once
#include "base.h"

namespace mh {

constexpr unsigned kMaxBenign = 8;

// One line of the report: "finding\tkey=value\t...". Python makes the sentence of it.
class Finding {
 public:
  explicit Finding(const char* kind);
  Finding& text(const char* key, const char* value);
  Finding& number(const char* key, long long value);
  Finding& pc(const char* key, Address pc);       // as a distance from mh_entry
  Finding& thread(const char* key, uint32_t number);
  void note();                // report it and go on; the same (kind, pc, other) only once
  void benign();              // the same, and never in the way of a defect
  [[noreturn]] void fatal();  // report it and end the launch

 private:
  char line_[1024];
  unsigned used_ = 0;
  uint64_t key_ = 1469598103934665603ull;
  void add(const char* format, ...);
};

uint32_t pack_pc(Address pc);
Address unpack_pc(uint32_t packed);
void print(const char* format, ...);  // one line of the report, buffered
[[noreturn]] void finish();           // flush the report and leave
[[noreturn]] void finish_from_signal();
void watch(uint64_t time_limit_ms);   // signal handlers: faults and the time limit

}  // namespace mh

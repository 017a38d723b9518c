// What clang's -fsanitize=thread and -fsanitize=bounds call. The thread sanitizer's pass announces
// each access of memory; these functions take the place of its runtime.
#include <string.h>

#include "memory.h"
#include "report.h"

#define MH_ACCESS(size)                                                                          \
  extern "C" void __tsan_read##size(void* p) {                                                   \
    mh::access(mh::Address(p), size, false, false, true, MH_PC);                                 \
  }                                                                                              \
  extern "C" void __tsan_write##size(void* p) {                                                  \
    mh::access(mh::Address(p), size, true, false, true, MH_PC);                                  \
  }                                                                                              \
  extern "C" void __tsan_unaligned_read##size(void* p) {                                         \
    mh::access(mh::Address(p), size, false, false, false, MH_PC);                                \
  }                                                                                              \
  extern "C" void __tsan_unaligned_write##size(void* p) {                                        \
    mh::access(mh::Address(p), size, true, false, false, MH_PC);                                 \
  }
MH_ACCESS(1)
MH_ACCESS(2)
MH_ACCESS(4)
MH_ACCESS(8)
MH_ACCESS(16)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void* __tsan_memcpy(void* to, const void* from, size_t size) {
  mh::access_range(mh::Address(from), size, false, MH_PC);
  mh::access_range(mh::Address(to), size, true, MH_PC, static_cast<const unsigned char*>(from));
  return memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
  mh::access_range(mh::Address(from), size, false, MH_PC);
  mh::access_range(mh::Address(to), size, true, MH_PC, static_cast<const unsigned char*>(from));
  return memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
  unsigned char bytes[16];
  memset(bytes, value, sizeof bytes);
  for (size_t done = 0; done < size; done += sizeof bytes) {
    const size_t part = size - done < sizeof bytes ? size - done : sizeof bytes;
    mh::access_range(mh::Address(to) + done, part, true, MH_PC, bytes);
  }
  return memset(to, value, size);
}

struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};
struct UbsanType {
  uint16_t kind, info;
  char name[1];
};
struct UbsanBounds {
  UbsanLocation location;
  const UbsanType* array;
  const UbsanType* index;
};

// The index itself when it fits in a register, else its address.
static long long ubsan_integer(const UbsanType* type, uintptr_t value) {
  const unsigned bits = 1u << (type->info >> 1);
  if (bits > 64) return 0;
  if (!(type->info & 1) || bits == 64) return (long long)value;
  return (long long)(value << (64 - bits)) >> (64 - bits);
}

static void out_of_bounds(UbsanBounds* data, uintptr_t index, mh::Address pc) {
  mh::Finding f("out-of-bounds");
  f.text("why", "index").text("type", data->array->name).text("file", data->location.file);
  f.number("line", data->location.line).number("column", data->location.column);
  f.number("index", ubsan_integer(data->index, index)).pc("pc", pc);
  f.thread("thread", mh::thread_number()).fatal();
}
// Clang calls one of two entries, by whether it may go on.
#define MH_HANDLER(NAME, PARAMETERS, REPORT)    \
  void NAME PARAMETERS { REPORT; }              \
  void NAME##_abort PARAMETERS { REPORT; }

MH_HANDLER(__ubsan_handle_out_of_bounds, (UbsanBounds* data, uintptr_t index),
           out_of_bounds(data, index, MH_PC))

static void local_out_of_bounds(mh::Address pc) {
  mh::Finding f("out-of-bounds");
  f.text("why", "local").text("space", "thread").pc("pc", pc);
  f.thread("thread", mh::thread_number()).fatal();
}
MH_HANDLER(__ubsan_handle_local_out_of_bounds, (), local_out_of_bounds(MH_PC))

// A finding at a place that the compiler knows.
static void located(const char* kind, const UbsanLocation& at, mh::Address pc) {
  mh::Finding f(kind);
  f.text("file", at.file).number("line", at.line).number("column", at.column).pc("pc", pc);
  f.thread("thread", mh::thread_number()).fatal();
}
struct UbsanOverflow {
  UbsanLocation location;
  const UbsanType* type;
};
MH_HANDLER(__ubsan_handle_divrem_overflow, (UbsanOverflow* data, uintptr_t, uintptr_t),
           located("division-by-zero", data->location, MH_PC))

// A pointer to a type of which the compiler may later read parts only: the rule is the type's.
struct UbsanMismatch {
  UbsanLocation location;
  const UbsanType* type;
  unsigned char log_alignment, check;
};
static void misaligned(const UbsanMismatch* data, uintptr_t address, mh::Address pc) {
  mh::Finding f("misaligned");
  f.text("why", "type").text("type", data->type->name).number("size", 1ll << data->log_alignment);
  f.text("file", data->location.file).number("line", data->location.line);
  f.number("column", data->location.column).number("address", (long long)address).pc("pc", pc);
  f.thread("thread", mh::thread_number()).fatal();
}
MH_HANDLER(__ubsan_handle_type_mismatch_v1, (UbsanMismatch* data, uintptr_t address),
           misaligned(data, address, MH_PC))

struct UbsanUnreachable {
  UbsanLocation location;
};
void __ubsan_handle_missing_return(UbsanUnreachable* data) {
  located("missing-return", data->location, MH_PC);
}

}  // extern "C"

// The coverage pass registers its marks; mh_block has taken their place.
extern "C" void __sanitizer_cov_trace_pc_guard_init(uint32_t*, uint32_t*) {}

// Device buffers with exact bounds, and the checks of each access: bounds, alignment, permission,
// initialisation. Threadgroup memory is in threadgroup.cpp, races are judged in races.cpp.
#include "memory.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <mach-o/loader.h>
extern "C" const struct mach_header_64 _mh_execute_header;
#else
extern "C" char __executable_start[], _end[];
#endif

#include "counters.h"
#include "races.h"
#include "report.h"
#include "threadgroup.h"

namespace mh {

Buffer g_buffers[kMaxBuffers];
PendingRead g_pending;
const unsigned char* g_stored;
unsigned g_buffer_count;

const char* access_name(bool write, bool atomic) {
  return atomic ? "atomic" : write ? "write" : "read";
}

namespace {

Address g_device_low;
uint64_t g_device_span;
unsigned g_slot_shift;

uint64_t g_shadow_bytes;
bool g_read_uninitialised;

Address g_image_low, g_image_high;  // the program itself: constants that a kernel may read

void find_image() {
#if defined(__APPLE__)
  const char* at = reinterpret_cast<const char*>(&_mh_execute_header + 1);
  Address slide = 0;
  for (uint32_t i = 0; i < _mh_execute_header.ncmds; ++i) {
    const load_command* command = reinterpret_cast<const load_command*>(at);
    at += command->cmdsize;
    if (command->cmd != LC_SEGMENT_64) continue;
    const segment_command_64* s = reinterpret_cast<const segment_command_64*>(command);
    if (!strcmp(s->segname, SEG_PAGEZERO) || !strcmp(s->segname, SEG_LINKEDIT)) continue;
    if (!strcmp(s->segname, SEG_TEXT)) {
      g_image_low = Address(&_mh_execute_header);
      slide = g_image_low - Address(s->vmaddr);
    }
    const Address end = Address(s->vmaddr + s->vmsize) + slide;
    if (end > g_image_high) g_image_high = end;
  }
#else
  g_image_low = Address(__executable_start);
  g_image_high = Address(_end);
#endif
}

void report_pending(bool written_back) {
  const PendingRead p = g_pending;
  g_pending.thread = 0;
  if (!written_back) g_read_uninitialised = true;
  Finding f("uninitialised");
  f.pc("pc", p.pc).text("space", p.space == MH_DEVICE ? "device" : "threadgroup");
  if (p.variable) f.text("variable", p.variable); else f.number("buffer", p.buffer);
  f.number("offset", p.offset).number("written_back", written_back);
  f.thread("thread", p.thread).note();
}

// Before the checks of any access: what it says of the read that is held.
inline void settle_pending(Address address, unsigned size, bool write) {
  if (!g_pending.thread) return;
  report_pending(write && g_pending.thread == thread_number() && g_pending.address == address &&
                 g_pending.size == size);
}

[[noreturn]] void outside(const Buffer* buffer, Address address, unsigned size, bool write,
                          bool atomic, Address pc, const char* kind, const char* why) {
  Finding f(kind);
  f.pc("pc", pc).text("access", access_name(write, atomic)).number("size", size).text("why", why);
  if (buffer) {
    f.text("space", buffer->constant ? "constant" : "device");
    f.number("buffer", buffer - g_buffers);
    f.number("offset", (long long)(address - buffer->low)).number("extent", (long long)buffer->size);
  } else {
    f.number("address", (long long)address);
  }
  f.thread("thread", thread_number()).fatal();
}

void check_aligned(Address address, unsigned size, bool write, bool atomic, bool aligned,
                   Address pc) {
  if (!aligned || (address & (size - 1)) == 0) return;
  Finding f("misaligned");
  f.pc("pc", pc).text("access", access_name(write, atomic)).number("size", size);
  f.number("address", (long long)address).thread("thread", thread_number()).note();
}

void access_device(Address address, unsigned size, bool write, bool atomic, Address pc) {
  const unsigned slot = unsigned((address - g_device_low) >> g_slot_shift);
  Buffer& b = g_buffers[slot];
  if (slot >= g_buffer_count || !b.present) {
    outside(nullptr, address, size, write, atomic, pc, "out-of-bounds", "unbound");
  }
  const uint64_t offset = address - b.low;
  if (offset >= b.size || offset + size > b.size) {
    outside(&b, address, size, write, atomic, pc, "out-of-bounds", "end");
  }
  if (b.gaps) {
    for (unsigned i = 0; i < size; ++i) {
      if (!b.gaps[offset + i]) {
        outside(&b, address, size, write, atomic, pc, "out-of-bounds", "gap");
      }
    }
  }
  if ((write || atomic) && !b.writable) {
    outside(&b, address, size, write, atomic, pc, "read-only", "const");
  }
  if (!b.cells) return;
  const unsigned granule = 1u << b.granule_shift;
  const bool whole = ((offset | size) & (granule - 1)) == 0;
  const uint64_t first = offset >> b.granule_shift;
  const uint64_t last = (offset + size - 1) >> b.granule_shift;
  for (uint64_t i = first; i <= last; ++i) {
    if (b.unwritten && !b.written[i] && !write) {
      if (!g_pending.thread) {
        g_pending = {thread_number(), size, address, pc, MH_DEVICE, int(slot), nullptr,
                     (long long)(i << b.granule_shift)};
      }
    }
    if (write) b.written[i] = 1;
    if (whole && g_launch->sanitize) {
      race_check(b.cells[i], {address, size, write, atomic, pc}, MH_DEVICE, int(slot), nullptr,
                 i << b.granule_shift);
    }
  }
}

}  // namespace

void* reserve(size_t bytes) {
  g_shadow_bytes += bytes;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1,
                 0);
  if (p == MAP_FAILED) die("out of memory");
  return p;
}

void map_buffers(int file) {
  find_image();
  const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
  uint64_t largest = page, total = 0;
  g_buffer_count = unsigned(g_launch->buffers);
  for (unsigned i = 0; i < g_buffer_count; ++i) {
    const uint64_t size = g_launch->buffer[i].size;
    total += size;
    if (size > largest) largest = size;
  }
  if (total > g_launch->memory_limit) {
    Finding("memory-limit").number("size", (long long)total).fatal();
  }
  // One slot of address space for each buffer, a power of two, with unmapped pages between.
  g_slot_shift = 26;  // far misses stay within the slot and are named
  while ((1ull << g_slot_shift) < 4 * (largest + page)) ++g_slot_shift;
  g_device_span = uint64_t(g_buffer_count) << g_slot_shift;
  void* base = mmap(nullptr, g_device_span + page, PROT_NONE,
                    MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) die("no address space for the buffers");
  g_device_low = Address(base);
  for (unsigned i = 0; i < g_buffer_count; ++i) {
    const BufferRecord& r = g_launch->buffer[i];
    Buffer& b = g_buffers[i];
    b.writable = r.flags & kWritable;
    b.unwritten = r.flags & kUnwritten;
    b.floats = r.flags & kFloats;
    b.size = r.size;
    if (r.kind == kAbsent) {
      // An argument that a false function constant leaves out: compilers may hoist a load
      // through its reference, so it points at readable bytes.
      b.argument = Address(reserve(page));
      continue;
    }
    if (r.kind == kThreadgroup) continue;  // threadgroup memory: made for each threadgroup
    char* low = reinterpret_cast<char*>(g_device_low + (uint64_t(i) << g_slot_shift) +
                                        (1ull << (g_slot_shift - 1)));
    // The first byte lies behind its page's beginning as it does in the file: see arguments.py.
    const uint64_t lead = r.offset % page;
    const uint64_t mapped = r.size ? (lead + r.size + page - 1) / page * page : 0;
    if (mapped &&
        mmap(low, mapped, PROT_READ | PROT_WRITE,
             MAP_FIXED | (b.writable ? MAP_SHARED : MAP_PRIVATE), file, off_t(r.offset - lead)) ==
            MAP_FAILED) {
      die("cannot map a buffer");
    }
    low += lead;
    b.low = Address(low);
    b.argument = b.low + r.pointer;
    b.present = true;
    unsigned granule = r.granule ? unsigned(r.granule) : 1;
    if (granule > 4) granule = 4;
    while ((1u << b.granule_shift) < granule) ++b.granule_shift;
    if (r.gaps) {
      void* gaps = mmap(nullptr, mapped, PROT_READ, MAP_PRIVATE, file, off_t(r.gaps));
      if (gaps == MAP_FAILED) die("cannot map a gap table");
      b.gaps = static_cast<const uint8_t*>(gaps);
    }
    if (b.writable && (g_launch->sanitize || g_launch->count)) {
      const uint64_t cells = (r.size >> b.granule_shift) + 1;
      b.cells = static_cast<Cell*>(reserve(cells * sizeof(Cell)));
      b.written = static_cast<uint8_t*>(reserve(cells));
    }
    if (b.unwritten) memset(low, int(g_launch->fill), r.size);
  }
  if (g_shadow_bytes > 20 * g_launch->memory_limit) {
    Finding("memory-limit").number("size", (long long)g_shadow_bytes).fatal();
  }
  make_threadgroup_memory();
}

void access(Address address, unsigned size, bool write, bool atomic, bool aligned, Address pc) {
  settle_pending(address, size, write);
  settle_store();
  if (address - g_device_low < g_device_span) {
    access_device(address, size, write, atomic, pc);
    check_aligned(address, size, write, atomic, aligned, pc);
    if (g_launch->count) {
      count_device(unsigned((address - g_device_low) >> g_slot_shift), address, size, write, pc);
    }
    return;
  }
  if (in_threadgroup_memory(address)) {
    const unsigned offset = access_threadgroup(address, size, write, atomic, pc);
    check_aligned(address, size, write, atomic, aligned, pc);
    if (g_launch->count) count_threadgroup(offset, size, write, pc);
    return;
  }
  if (address >= g_thread->stack_low && address + size <= g_thread->stack_high) return;
  if (address >= g_image_low && address < g_image_high) return;
  outside(nullptr, address, size, write, atomic, pc, "out-of-bounds", "wild");
}

void access_range(Address address, uint64_t size, bool write, Address pc,
                  const unsigned char* stored) {
  while (size) {
    const unsigned step = size >= 16 ? 16 : size >= 8 ? 8 : size >= 4 ? 4 : 1;
    g_stored = stored;
    access(address, step, write, false, false, pc);
    address += step;
    size -= step;
    if (stored) stored += step;
  }
  g_stored = nullptr;
}

void report_outputs() {
  if (g_pending.thread) report_pending(false);
  settle_store();
  for (unsigned i = 0; i < g_buffer_count; ++i) {
    const Buffer& b = g_buffers[i];
    if (!b.present || !b.cells) continue;
    const uint64_t count = b.size >> b.granule_shift;
    const unsigned granule = 1u << b.granule_shift;
    uint64_t missing = 0, first = 0;
    for (uint64_t k = 0; k < count; ++k) {
      if (b.gaps && !b.gaps[k << b.granule_shift]) continue;
      if (!b.written[k]) {
        if (!missing++) first = k;
        continue;
      }
      // Clang fills locals with ones and fresh threadgroup memory holds ones: as a float that is a
      // NaN whose bits survive arithmetic and rounding, and no operation on numbers makes it.
      const uint8_t* element = reinterpret_cast<const uint8_t*>(b.low) + (k << b.granule_shift);
      static const uint8_t ones[4] = {0xff, 0xff, 0xff, 0xff};
      if (b.floats && granule > 1 && g_launch->fill == 0xff && b.cells[k].write.thread && !g_read_uninitialised &&
          memcmp(element, ones, granule) == 0) {
        Finding("uninitialised").pc("pc", unpack_pc(b.cells[k].write.pc)).text("why", "value")
            .number("buffer", i).number("offset", (long long)k)
            .thread("thread", b.cells[k].write.thread).note();
      }
    }
    if (missing && b.unwritten) {
      Finding("unwritten").number("buffer", i).number("offset", (long long)first)
          .number("size", (long long)missing).number("extent", (long long)count).note();
    }
  }
}

}  // namespace mh

extern "C" void mh_declare(int index, int space, unsigned, bool read_only) {
  using namespace mh;
  if (unsigned(index) >= kMaxBuffers) die("too many arguments");
  if (unsigned(index) >= g_launch->buffers) die("an argument of the kernel was not given");
  BufferRecord& r = g_launch->buffer[index];
  g_buffers[index].constant = space == MH_CONSTANT;
  if (read_only || space == MH_CONSTANT) r.flags &= ~uint64_t(kWritable);
}

extern "C" void* mh_argument(int index) {
  using namespace mh;
  const BufferRecord& r = g_launch->buffer[index];
  if (r.kind == kThreadgroup) {
    return mh_threadgroup_variable(&r, r.size, 16, "threadgroup argument");
  }
  return reinterpret_cast<void*>(g_buffers[index].argument);
}

extern "C" void mh_atomic(const volatile void* address, unsigned size, int kind) {
  if (!mh::g_launch->sanitize && !mh::g_launch->count) return;
  mh::access(mh::Address(address), size, kind != MH_ATOMIC_LOAD, true, true, MH_PC);
}

// The report goes to standard output as lines of text; signals become findings here.
#include "report.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/ucontext.h>
#else
#include <ucontext.h>
#endif

#include "fibers.h"

namespace mh {

namespace {

char g_buffer[1 << 16];
unsigned g_used;
constexpr unsigned kMaxFindings = 64;
uint64_t g_seen[kMaxFindings];
unsigned g_findings;

void flush() {
  unsigned done = 0;
  while (done < g_used) {
    const ssize_t n = write(1, g_buffer + done, g_used - done);
    if (n <= 0) break;
    done += unsigned(n);
  }
  g_used = 0;
}

#if defined(__x86_64__) && !defined(__APPLE__)
// The length of a DIV or IDIV instruction, or 0.
unsigned division_length(const uint8_t* code) {
  unsigned n = 0;
  if (code[n] == 0x66) ++n;
  if ((code[n] & 0xf0) == 0x40) ++n;
  if (code[n] != 0xf7 && code[n] != 0xf6) return 0;
  const uint8_t modrm = code[++n];
  ++n;
  if ((modrm >> 3 & 7) < 6) return 0;
  const unsigned mode = modrm >> 6, base = modrm & 7;
  if (mode == 3) return n;
  if (base == 4) {  // a SIB byte
    if (mode == 0 && (code[n] & 7) == 5) n += 4;
    ++n;
  } else if (mode == 0 && base == 5) {
    n += 4;
  }
  return n + (mode == 1 ? 1 : mode == 2 ? 4 : 0);
}
#endif

// Program counter and stack pointer of the interrupted code.
void interrupted(void* context, Address& pc, Address& stack) {
  const ucontext_t* c = static_cast<const ucontext_t*>(context);
#if defined(__APPLE__) && defined(__aarch64__)
  pc = c->uc_mcontext->__ss.__pc;
  stack = c->uc_mcontext->__ss.__sp;
#elif defined(__APPLE__)
  pc = c->uc_mcontext->__ss.__rip;
  stack = c->uc_mcontext->__ss.__rsp;
#elif defined(__aarch64__)
  pc = c->uc_mcontext.pc;
  stack = c->uc_mcontext.sp;
#else
  pc = Address(c->uc_mcontext.gregs[16]);  // REG_RIP
  stack = Address(c->uc_mcontext.gregs[15]);  // REG_RSP
#endif
}

// Words of the interrupted stack: some are return addresses, the first in the kernel is its line.
void add_stack(Finding& f, Address stack) {
  const Thread* t = g_thread;
  if (!t || stack < t->stack_low || stack >= t->stack_high) {
    // The scheduler switches stacks: a waiting thread's stack tells where it waits.
    if (!t || !t->wait_pc) return;
    f.pc("pc0", t->wait_pc);
    return;
  }
  const Address* word = reinterpret_cast<const Address*>(stack & ~Address(7));
  const Address low = Address(&mh_entry) - (64u << 20), high = Address(&mh_entry) + (64u << 20);
  char key[8];
  for (int n = 0; n < 24 && Address(word) + 8 <= t->stack_high; ++word) {
    if (*word < low || *word > high) continue;
    snprintf(key, sizeof key, "pc%d", n++);
    f.pc(key, *word);
  }
}

void on_signal(int signal, siginfo_t* info, void* context) {
#if defined(__x86_64__) && !defined(__APPLE__)
  // Integer division by zero only gives an unspecified value in Metal: step over it.
  if (signal == SIGFPE) {
    greg_t* r = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const unsigned length = division_length(reinterpret_cast<const uint8_t*>(r[16]));
    if (length) {
      r[16] += length;
      r[13] = r[12] = 0;  // RAX, RDX: quotient and remainder
      return;
    }
  }
#endif
  Address pc, stack;
  interrupted(context, pc, stack);
  static bool entered;
  if (entered) _exit(1);
  entered = true;
  const char* kind = "fault";
  if (signal == SIGALRM || signal == SIGXCPU) {
    kind = "time-limit";
  } else if (signal == SIGSYS) {
    kind = "sandbox";
  } else if (in_stack_guard(Address(info->si_addr)) ||
             (g_thread && stack < g_thread->stack_low && stack + (1u << 30) > g_thread->stack_low)) {
    kind = "stack-overflow";
  }
  Finding f(kind);
  f.pc("pc", pc + 1).number("signal", signal);  // a return address lies behind its call
  if (signal == SIGSEGV || signal == SIGBUS) {
    f.number("address", (long long)(Address(info->si_addr)));
  }
#if defined(__linux__)
  if (signal == SIGSYS) f.number("call", info->si_syscall);
#endif
  if (g_thread) f.thread("thread", thread_number());
  add_stack(f, stack);
  f.fatal();
}

}  // namespace

uint32_t pack_pc(Address pc) { return uint32_t(pc - Address(&mh_entry) + (1u << 30)); }
Address unpack_pc(uint32_t packed) { return Address(&mh_entry) + packed - (1u << 30); }

void print(const char* format, ...) {
  if (g_used > sizeof g_buffer - 4096) flush();
  va_list list;
  va_start(list, format);
  const int n = vsnprintf(g_buffer + g_used, 4000, format, list);
  va_end(list);
  if (n > 0) g_used += n < 4000 ? unsigned(n) : 3999u;
}

void finish() {
  print("end\n");
  flush();
  _exit(0);
}

void die(const char* message) {
  print("error\t%s\n", message);
  finish();
}

Finding::Finding(const char* kind) {
  line_[0] = 0;
  for (const char* c = kind; *c; ++c) key_ = (key_ ^ (unsigned char)*c) * 1099511628211ull;
  add("finding\tkind=%s", kind);
}

void Finding::add(const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int n = vsnprintf(line_ + used_, sizeof line_ - used_, format, list);
  va_end(list);
  if (n > 0) used_ += unsigned(n);
  if (used_ >= sizeof line_) used_ = sizeof line_ - 1;
}

Finding& Finding::text(const char* key, const char* value) {
  add("\t%s=%s", key, value);
  return *this;
}

Finding& Finding::number(const char* key, long long value) {
  add("\t%s=%lld", key, value);
  return *this;
}

Finding& Finding::pc(const char* key, Address pc) {
  add("\t%s=%lld", key, (long long)(pc - Address(&mh_entry)));
  key_ = (key_ ^ pc) * 1099511628211ull;
  return *this;
}

Finding& Finding::thread(const char* key, uint32_t number) {
  const unsigned index = (number - 1) % kMaxThreads;
  const unsigned group = (number - 1) / kMaxThreads;
  const unsigned gx = unsigned((g_launch->grid[0] + g_launch->group[0] - 1) / g_launch->group[0]);
  const unsigned gy = unsigned((g_launch->grid[1] + g_launch->group[1] - 1) / g_launch->group[1]);
  add("\t%s=%u@%u,%u,%u", key, index, group % gx, group / gx % gy, group / gx / gy);
  return *this;
}

namespace {
bool first_time(uint64_t* seen, unsigned& count, unsigned limit, uint64_t key) {
  for (unsigned i = 0; i < count; ++i) {
    if (seen[i] == key) return false;
  }
  if (count == limit) return false;
  seen[count++] = key;
  return true;
}
}  // namespace

void Finding::note() {
  if (first_time(g_seen, g_findings, kMaxFindings, key_)) print("%s\n", line_);
}

void Finding::benign() {
  static uint64_t seen[kMaxBenign];
  static unsigned count;
  if (first_time(seen, count, kMaxBenign, key_)) print("%s\n", line_);
}

void Finding::fatal() {
  print("%s\tfatal=1\n", line_);
  finish();
}

void watch(uint64_t time_limit_ms) {
  static char stack[64 * 1024];
  stack_t alternate;
  memset(&alternate, 0, sizeof alternate);
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGALRM, SIGXCPU, SIGSYS};
  for (int s : signals) sigaction(s, &action, nullptr);
  struct itimerval timer;
  memset(&timer, 0, sizeof timer);
  timer.it_value.tv_sec = time_t(time_limit_ms / 1000);
  timer.it_value.tv_usec = suseconds_t(time_limit_ms % 1000 * 1000);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace mh

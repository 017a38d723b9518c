// Linux: a seccomp filter of system calls (since 3.5). macOS: the sandbox that denies everything.
#include "confine.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

namespace mh {

#if defined(__x86_64__)
constexpr uint32_t kArch = AUDIT_ARCH_X86_64;
#else
constexpr uint32_t kArch = AUDIT_ARCH_AARCH64;
#endif

#define MH_FIELD(NAME) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, NAME))
#define MH_ARGUMENT(N) MH_FIELD(args[N])  // the low half: the machine is little-endian
#define MH_RETURN(WHAT) BPF_STMT(BPF_RET | BPF_K, WHAT)
#define MH_ALLOW(CALL) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALL, 0, 1), MH_RETURN(SECCOMP_RET_ALLOW)
// Behind this the code of one call: `LENGTH` statements.
#define MH_CALL(CALL, LENGTH) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALL, 0, LENGTH)
#define MH_EQUAL(VALUE, YES, NO) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VALUE, YES, NO)
#define MH_BITS(VALUE, YES, NO) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, VALUE, YES, NO)

bool confine() {
  sock_filter filter[] = {
      MH_FIELD(arch),
      MH_EQUAL(kArch, 1, 0),
      MH_RETURN(SECCOMP_RET_KILL),  // another table of calls: int 0x80
      MH_FIELD(nr),                 // those of x32 are above all that follow
      MH_ALLOW(SYS_exit_group),
      MH_ALLOW(SYS_exit),
      MH_ALLOW(SYS_rt_sigreturn),
      MH_ALLOW(SYS_munmap),
      MH_ALLOW(SYS_brk),
      MH_ALLOW(SYS_clock_gettime),
      MH_ALLOW(SYS_gettimeofday),
      MH_CALL(SYS_write, 4),  // the report
      MH_ARGUMENT(0),
      MH_EQUAL(1, 0, 1),
      MH_RETURN(SECCOMP_RET_ALLOW),
      MH_RETURN(SECCOMP_RET_TRAP),
      MH_CALL(SYS_mprotect, 4),
      MH_ARGUMENT(2),
      MH_BITS(PROT_EXEC, 1, 0),
      MH_RETURN(SECCOMP_RET_ALLOW),
      MH_RETURN(SECCOMP_RET_TRAP),
      // No code, and no memory that the limit of data does not count: a stack that grows, memory
      // to share. Shared is the launch's own file alone.
      MH_CALL(SYS_mmap, 10),
      MH_ARGUMENT(2),
      MH_BITS(PROT_EXEC, 7, 0),
      MH_ARGUMENT(3),
      MH_BITS(MAP_GROWSDOWN, 5, 0),
      MH_BITS(MAP_SHARED, 0, 3),
      MH_BITS(MAP_ANONYMOUS, 3, 0),
      MH_ARGUMENT(4),
      MH_EQUAL(0, 0, 1),
      MH_RETURN(SECCOMP_RET_ALLOW),
      MH_RETURN(SECCOMP_RET_TRAP),
      MH_RETURN(SECCOMP_RET_TRAP),
  };
  const sock_fprog program = {sizeof filter / sizeof *filter, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace mh

#elif defined(__APPLE__)
extern "C" int sandbox_init(const char* profile, uint64_t flags, char** error);

namespace mh {

bool confine() {
  char* error = nullptr;
  return sandbox_init("(version 1)(deny default)", 0, &error) == 0;
}

}  // namespace mh

#else
namespace mh {
bool confine() { return false; }
}  // namespace mh
#endif

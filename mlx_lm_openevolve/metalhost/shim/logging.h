// Messages to the system's log (Metal 3.2): a GPU drops them unless its program asks for them.
#pragma once
#include "spaces.h"

namespace metal {

struct os_log {
  constexpr os_log(const char*, const char*) {}
  constexpr os_log(constant char*, constant char*) {}
#define MH_LOG(NAME)                                                     \
  template <class... A> MH_INLINE void NAME(const char*, A...) const {}  \
  template <class... A> MH_INLINE void NAME(constant char*, A...) const {}
  MH_LOG(log) MH_LOG(log_debug) MH_LOG(log_info) MH_LOG(log_error) MH_LOG(log_fault)
#undef MH_LOG
};
constant constexpr os_log os_log_default("", "");

}  // namespace metal

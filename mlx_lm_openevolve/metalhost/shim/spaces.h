// Address spaces and keywords. clang's SYCL device mode lets classes copy between spaces as
// Metal's do. Plain pointers are generic there; strict.py refuses what Metal refuses.
#pragma once

#define MH_DEVICE_SPACE __attribute__((opencl_global))
#define MH_CONSTANT_SPACE __attribute__((opencl_global_host))
#define MH_THREADGROUP_SPACE __attribute__((opencl_local))
// What is reachable from such a function is compiled; older clangs need no mark.
#if __has_cpp_attribute(clang::sycl_external)
#define MH_EXTERNAL [[clang::sycl_external]]
#else
#define MH_EXTERNAL
#endif

// Functions of the shim carry the line of their caller: nodebug.
#define MH_INLINE inline __attribute__((always_inline, nodebug))
#define MH_UNCHECKED __attribute__((no_sanitize("thread", "bounds", "coverage")))

// What strict.py must know and the compiler does not: a note in the syntax tree, for which an
// attribute serves that changes no code.
#define MH_SPACES(WORDS) __attribute__((deprecated(WORDS)))

#define device MH_DEVICE_SPACE
#define constant const MH_CONSTANT_SPACE  // what lies there is constant, named so or not
#define threadgroup MH_THREADGROUP_SPACE
#define thread
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST constant

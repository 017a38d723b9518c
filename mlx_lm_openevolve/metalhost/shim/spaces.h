// Address spaces and keywords. The compiling pass runs in clang's SYCL device mode, where classes
// copy between spaces as Metal's do; there plain pointers are generic, so that a second,
// syntax-only pass in plain C++ (MH_STRICT) refuses what Metal refuses.
#pragma once

#ifdef MH_STRICT
#define MH_DEVICE_SPACE __attribute__((address_space(1)))
#define MH_CONSTANT_SPACE __attribute__((address_space(2)))
#define MH_THREADGROUP_SPACE __attribute__((address_space(3)))
#define MH_EXTERNAL
#else
#define MH_DEVICE_SPACE __attribute__((opencl_global))
#define MH_CONSTANT_SPACE __attribute__((opencl_global_host))
#define MH_THREADGROUP_SPACE __attribute__((opencl_local))
#define MH_EXTERNAL [[clang::sycl_external]]
#endif

// Functions of the shim carry the line of their caller: nodebug.
#define MH_INLINE inline __attribute__((always_inline, nodebug))
#define MH_UNCHECKED __attribute__((no_sanitize("thread", "bounds", "integer-divide-by-zero", "coverage")))

#define device MH_DEVICE_SPACE
#define constant MH_CONSTANT_SPACE
#define threadgroup MH_THREADGROUP_SPACE
#define thread
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST constant

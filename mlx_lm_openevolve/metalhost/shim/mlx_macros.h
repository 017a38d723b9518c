// Macros that MLX puts in front of a kernel of mx.fast.metal_kernel. They are seen while the source
// is preprocessed; mlx_utilities.h holds the rest.
#pragma once
#define MTL_CONST constant
#define MLX_MTL_PRAGMA_UNROLL _Pragma("clang loop unroll(full)")
#define instantiate_kernel(name, func, ...) \
  template [[host_name(name)]] [[kernel]] decltype(func<__VA_ARGS__>) func<__VA_ARGS__>;

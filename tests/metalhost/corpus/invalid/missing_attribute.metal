// An attribute of the kernel is not a function.
// because: called object type 'uint3' is not a function
// source: MLX metal_kernel signature (attributes are parameters)
uint i = thread_position_in_grid(0);  // BUG
y[i] = x[i];

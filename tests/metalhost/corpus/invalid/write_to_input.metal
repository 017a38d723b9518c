// Inputs are const device pointers.
// because: cannot assign to a const-qualified element
// source: MLX metal_kernel signature (const device T*)
// in: w float32 32
w[0] = x[0];  // BUG
y[0] = x[0];

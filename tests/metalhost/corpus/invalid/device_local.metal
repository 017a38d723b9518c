// A local variable in device memory.
// because: automatic variable qualified with an address space
// source: MSL 4.0 section 4.1 (device memory is allocated by the app)
device float3 v(0);  // BUG
y[0] = x[0] + v.x;

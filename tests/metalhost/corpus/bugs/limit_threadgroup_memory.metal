// 36 KiB of threadgroup memory, 32 are allowed.
// finds: threadgroup-memory
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float a[8192];
threadgroup float b[1024];  // BUG
uint i = thread_position_in_threadgroup.x;
a[i] = x[i];
b[i] = x[i];
y[i] = a[i] + b[i];

// A hundred gigabytes of threadgroup memory.
// finds: threadgroup-memory
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
threadgroup float a[25ul * 1024 * 1024 * 1024];  // BUG
uint i = thread_position_in_threadgroup.x;
a[i] = x[i];
y[i] = a[i];

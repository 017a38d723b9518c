// Threads of one threadgroup exchange through device memory without a barrier.
// finds: race
// also: uninitialised
// in: x float32 64
// out: t float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];  // BUG
y[i] = t[63 - i];  // BUG

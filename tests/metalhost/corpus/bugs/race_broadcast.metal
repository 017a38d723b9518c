// Thread 0 publishes the maximum and everybody reads it at once.
// finds: race
// also: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float top[1];
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  top[0] = x[0];  // BUG
}
y[i] = x[i] - top[0];  // BUG

// Threadgroup memory is read before anything is written to it.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
y[i] = x[i] + tile[i];  // BUG

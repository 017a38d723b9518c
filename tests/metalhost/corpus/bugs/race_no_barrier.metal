// Threads of different simdgroups exchange values with no barrier at all.
// finds: race
// also: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
y[i] = tile[63 - i];  // BUG

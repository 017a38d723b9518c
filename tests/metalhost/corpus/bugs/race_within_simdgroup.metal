// Lanes of one simdgroup exchange through threadgroup memory: that needs simdgroup_barrier.
// finds: race
// also: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
y[i] = tile[i ^ 1];  // BUG

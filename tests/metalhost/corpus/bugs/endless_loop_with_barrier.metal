// Every thread goes round for ever and meets at a barrier each time.
// finds: time-limit
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float v = x[i];
while (v < 1e30f) {  // BUG
  tile[i] = v;  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
  v = min(v, tile[63 - i]);  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = v;

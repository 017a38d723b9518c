// The barrier after the store is there, the one before the next store is not.
// finds: race
// in: x float32 4x64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
for (int k = 0; k < 4; ++k) {
  tile[i] = x[k * 64 + i];  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);
  acc += tile[63 - i];  // BUG
}
y[i] = acc;

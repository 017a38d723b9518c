// A double buffer that writes the half which is being read.
// finds: race
// also: uninitialised
// in: x float32 4x64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[2][64];
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
tile[0][i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int k = 1; k < 4; ++k) {
  tile[(k + 1) & 1][i] = x[k * 64 + i];  // BUG
  acc += tile[(k - 1) & 1][63 - i];  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
y[i] = acc;

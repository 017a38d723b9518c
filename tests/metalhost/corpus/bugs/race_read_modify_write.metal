// A counter in threadgroup memory is incremented without an atomic.
// finds: race
// out: y uint32 64
// grid: 64
// threadgroup: 64
threadgroup uint count[1];
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  count[0] = 0;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
count[0] += 1;  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = count[0];

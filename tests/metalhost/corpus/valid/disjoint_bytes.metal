// Threads writing neighbouring bytes of one word do not race.
// in: x uint8 64 = 0..63
// out: y uint8 64 = 63..0
// grid: 64
// threadgroup: 64
threadgroup uchar tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[63 - i];

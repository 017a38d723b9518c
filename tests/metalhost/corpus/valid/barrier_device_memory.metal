// A threadgroup exchanges values through device memory behind a mem_device barrier.
// in: x float32 64 = 0..63
// out: t float32 64 = 0..63
// out: y float32 64 = 63..0
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];
threadgroup_barrier(mem_flags::mem_device);
y[i] = t[63 - i];

// Arrays of several dimensions as parameters, and volatile threadgroup memory.
// out: y float32 32 = 31..0
// header
inline void fill(threadgroup float t[4][8], uint i) { t[i / 8][i % 8] = float(i); }
inline float read(const threadgroup float t[4][8], uint i) { return t[i / 8][i % 8]; }
// body
volatile threadgroup float u[32];
threadgroup float t[4][8];
uint i = thread_position_in_threadgroup.x;
fill(t, i);
threadgroup_barrier(mem_flags::mem_threadgroup);
u[i] = read(t, 31 - i);
y[i] = u[i];

// Neighbouring threads store float2 values that overlap by one float.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[66];
uint i = thread_position_in_threadgroup.x;
threadgroup packed_float2* at = (threadgroup packed_float2*)(tile + i);
at[0] = packed_float2(x[i], 0.0f);  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i];

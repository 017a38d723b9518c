// Running off one threadgroup array lands in the next one, which is no excuse.
// finds: out-of-bounds
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float first[32];
threadgroup float second[32];
uint i = thread_position_in_threadgroup.x;
first[i] = x[i];
second[i] = 2.0f * x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float s = 0.0f;
for (uint j = i; j <= 32; ++j) {
  s += first[j];  // BUG
}
y[i] = s + second[i];

// A threadgroup of 40 threads: the second simdgroup has eight lanes.
// out: y int32 2 = 32 8
// grid: 40
// threadgroup: 40
int n = simd_sum(1);
if (thread_index_in_simdgroup == 0) {
  y[simdgroup_index_in_threadgroup] = n;
}

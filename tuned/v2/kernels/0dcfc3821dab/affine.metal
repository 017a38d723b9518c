const int first = int(threadgroup_position_in_grid.x * SIMDGROUPS +
                      simdgroup_index_in_threadgroup) * OUTS;
const int row = int(threadgroup_position_in_grid.y);
const uint expert = indices[row];
// The first row of an expert does the work of all.
bool later = false;
for (int i = 0; i < row; ++i) {
  later = later || indices[i] == expert;
}
if (later || first >= N) {
  return;
}
const Affine<T, BITS, GROUP, K> packing = {scales, biases};
int members[SHARED];
int count = 0;
for (int i = row; i < ROWS; ++i) {
  if (indices[i] == expert) {
    members[count++] = i;
  }
  if (count == SHARED || (count > 0 && i == ROWS - 1)) {
    multiply_members<T, LENGTH, N, K, OUTS, SHARED>(
        packing, x, weight, out, members, count, long(expert) * N, first,
        int(thread_index_in_simdgroup));
    count = 0;
  }
}

// A helper is handed a row of a tile and walks one column too far in the last row.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 8
// grid: 8
// threadgroup: 8
// header
float row_sum(threadgroup const float* row, int n) {
  float s = 0.0f;
  for (int j = 0; j < n; ++j) {
    s += row[j];  // BUG
  }
  return s;
}
// body
threadgroup float tile[8][8];
uint i = thread_position_in_threadgroup.x;
for (int j = 0; j < 8; ++j) {
  tile[i][j] = x[i * 8 + j];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = row_sum(tile[i], 9);

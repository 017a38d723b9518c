// An uninitialised local is used as an index.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
uint j;
if (x[i] > 1e30f) {  // BUG
  j = 1;
}
y[i] = x[j & 31];  // BUG

// A compiler builtin that ends the process.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
if (x[i] < 1e30f) {
  __builtin_trap();  // BUG
}
y[i] = x[i];

// The body closes the kernel and opens a constructor that would run when the code is loaded.
// finds: sandbox compile
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
y[thread_position_in_grid.x] = x[thread_position_in_grid.x];
}
__attribute__((constructor)) void start() {  // BUG

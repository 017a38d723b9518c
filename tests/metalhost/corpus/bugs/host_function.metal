// Declares and calls a function of the host's C library.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
// header
extern "C" int getpid();  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i] + float(getpid());  // BUG

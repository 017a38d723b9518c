// The name of the file is hidden in a macro.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
#define SECRET "/etc/passwd"
#include SECRET  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

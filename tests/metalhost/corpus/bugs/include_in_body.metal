// Includes a file of the host from inside the body.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
uint i = thread_position_in_grid.x;
#include "/etc/hostname"  // BUG
y[i] = x[i];

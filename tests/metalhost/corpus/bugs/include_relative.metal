// Climbs out of the include root.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
#include <../../../../../../etc/passwd>  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

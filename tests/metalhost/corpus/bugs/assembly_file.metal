// Inline assembly could read a file at assembly time, and run anything at run time.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
__asm__(".incbin \"/etc/passwd\"");  // BUG
y[i] = x[i];

// An address made up from an integer.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
const device float* p = (const device float*)(0x123456780ul + i * 4);
y[i] = x[i] + *p;  // BUG

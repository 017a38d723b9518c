// A half4 store to an odd element.
// finds: misaligned
// in: x float16 32
// out: y float16 64
// init: 0
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device half4* w = (device half4*)(y + 4 * i + 1);
w[0] = half4(x[i]);  // BUG

// The last half4 store straddles the end of the output.
// finds: out-of-bounds
// in: x float16 64
// out: y float16 63
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device half4* v = (const device half4*)x;
device half4* w = (device half4*)y;
w[i] = v[i];  // BUG

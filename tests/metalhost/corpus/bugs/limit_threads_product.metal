// 32 x 8 x 8 threads: each side is small, the product is 2048.
// finds: threadgroup-size
// in: x float32 2048
// out: y float32 2048
// grid: 32 8 8
// threadgroup: 32 8 8
uint3 p = thread_position_in_grid;
uint i = (p.z * 8 + p.y) * 32 + p.x;
y[i] = x[i];

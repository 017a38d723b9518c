// Two calls in the branches of a lane's condition are two calls, though they share a line.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
uint i = thread_position_in_grid.x;
float v = x[i];
if (i < 16) v = simd_sum(v); else v = simd_sum(v); // BUG
y[i] = v;

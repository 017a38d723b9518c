// The right side of && is evaluated by some lanes only.
// finds: divergent-collective
// in: x float32 32 = 0..31
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
bool hit = x[i] > 15.5f && simd_any(x[i] > 20.5f);  // BUG
y[i] = hit ? 1.0f : 0.0f;

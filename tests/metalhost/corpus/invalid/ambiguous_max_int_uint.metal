// max of a signed and an unsigned integer.
// because: call to 'max' is ambiguous
// source: overload set of metal_integer; gfx-rs/wgpu issue 3212
int a = int(x[0]);
y[0] = max(a, thread_position_in_grid.x);  // BUG

// -2147483648 is a long, 1 an int.
// because: call to 'min' is ambiguous
// source: gfx-rs/wgpu issue 3212
y[0] = min(1, -2147483648);  // BUG

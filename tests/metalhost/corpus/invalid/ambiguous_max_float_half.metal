// max of a float and a half.
// because: call to 'max' is ambiguous
// source: halide/Halide issue 8245
half h = half(x[1]);
y[0] = max(x[0], h);  // BUG

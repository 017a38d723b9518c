// min of a uchar and an int.
// because: call to 'min' is ambiguous
// source: tinygrad/tinygrad issue 7036
uchar a = uchar(x[0]);
y[0] = min(a, 7);  // BUG

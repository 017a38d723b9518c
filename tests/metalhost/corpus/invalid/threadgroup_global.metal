// Threadgroup memory at program scope.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4
// header
threadgroup float tile[32];  // BUG
// body
y[0] = x[0];

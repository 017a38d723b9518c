// A variable at program scope outside constant memory.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4
// header
float factor = 2.0f;  // BUG
// body
y[0] = x[0] * factor;

// A constant at program scope needs a value.
// because: variable in constant address space must be initialized
// source: MSL 4.0 section 4.2
// header
constant float factor;  // BUG
// body
y[0] = x[0] * factor;

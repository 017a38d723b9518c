// Constant memory is read-only.
// because: cannot assign to a variable in the constant address space
// source: MSL 4.0 section 4.2
// header
constant float table[2] = {1.0f, 2.0f};
// body
table[0] = x[0];  // BUG
y[0] = table[0];

// A pointer to a string literal without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4
const char* name = "k";  // BUG
y[0] = x[0] + float(name[0]);

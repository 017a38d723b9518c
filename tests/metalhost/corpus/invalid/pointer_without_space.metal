// A pointer variable without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; shader-slang/slang issue 4129
float v = x[0];
float* p = &v;  // BUG
y[0] = *p;

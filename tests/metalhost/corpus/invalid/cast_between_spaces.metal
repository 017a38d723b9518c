// A C-style cast does not bridge address spaces.
// because: C-style cast converts between mismatching address spaces
// source: MSL 4.0 section 4 (the address spaces are disjoint)
float v = x[0];
y[0] = *(device float*)&v;  // BUG

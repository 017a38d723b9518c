// A statement without its end.
// because: expected ';' at end of declaration
// source: C++14 6
float v = x[0]  // BUG
y[0] = v;

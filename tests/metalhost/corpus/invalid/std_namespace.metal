// The C++ standard library does not exist.
// because: use of undeclared identifier 'std'
// source: MSL 4.0 section 1.5.4
y[0] = std::max(x[0], x[1]);  // BUG

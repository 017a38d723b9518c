// Braces do not narrow.
// because: type 'const device float' cannot be narrowed to 'int' in initializer list
// source: C++14 8.5.4
int n{x[0]};  // BUG
y[0] = float(n);

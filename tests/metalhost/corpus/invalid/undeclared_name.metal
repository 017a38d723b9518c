// A misspelt variable.
// because: use of undeclared identifier 'acc'
// source: C++14 3.4
y[0] = x[0] + acc;  // BUG

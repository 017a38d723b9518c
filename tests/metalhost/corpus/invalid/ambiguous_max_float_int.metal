// max of a float and an int fits two overloads equally.
// because: call to 'max' is ambiguous
// source: overload sets of metal_math and metal_integer; amzeratul/halley pull request 79
y[0] = max(x[0], 0);  // BUG

// clamp of a float between int limits.
// because: call to 'clamp' is ambiguous
// source: amzeratul/halley pull request 79
y[0] = clamp(x[0], -1, 1);  // BUG

// dot takes floating-point vectors.
// because: no matching function for call to 'dot'
// source: MSL 4.0 section 6.8
y[0] = x[0] + dot(int4(1), int4(2));  // BUG

// No exceptions: throw.
// because: exceptions are not supported
// source: MSL 4.0 section 1.5.4
if (x[0] < 0.0f) {
  throw 1;  // BUG
}
y[0] = x[0];

// No exceptions: try.
// because: exceptions are not supported
// source: MSL 4.0 section 1.5.4
try {  // BUG
  y[0] = x[0];
} catch (...) {
  y[0] = 0.0f;
}

// No goto.
// because: goto is not supported
// source: MSL 4.0 section 1.5.4
float v = x[0];
again:
v *= 0.5f;
if (v > 1.0f) {
  goto again;  // BUG
}
y[0] = v;

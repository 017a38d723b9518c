// A reference parameter without an address space.
// because: reference type must have explicit address space qualifier
// source: MSL 4.0 section 4
// header
void bump(float& v) {  // BUG
  v += 1.0f;
}
// body
float v = x[0];
bump(v);
y[0] = v;

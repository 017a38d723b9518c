// A pointer parameter without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; hashcat/hashcat pull request 3540
// header
float first(const float* p) {  // BUG
  return p[0];
}
// body
y[0] = first(x);

// A cast to a pointer without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; hashcat/hashcat pull request 4237
y[0] = *(const float*)x;  // BUG

// A kernel's pointer argument names its address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 sections 1.5.4 and 4
// header
[[kernel]] void second(float* p [[buffer(0)]]) {  // BUG
  p[0] = 1.0f;
}
// body
y[0] = x[0];

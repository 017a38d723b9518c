// A kernel cannot call a kernel.
// because: kernel functions cannot call one another
// source: MSL 4.0 section 5.1
// header
[[kernel]] void second(device float* p [[buffer(0)]]) {
  p[0] = 1.0f;
}
// body
second(y);  // BUG

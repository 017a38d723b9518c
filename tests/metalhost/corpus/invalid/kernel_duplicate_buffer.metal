// Two arguments at one buffer index.
// because: cannot reserve 'buffer' resource location at index 0
// source: MSL 4.0 section 5.2.1
// header
[[kernel]] void second(device float* p [[buffer(0)]], device float* q [[buffer(0)]]) {  // BUG
  p[0] = q[0];
}
// body
y[0] = x[0];

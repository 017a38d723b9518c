// A kernel returns void.
// because: invalid return type 'int' for kernel function
// source: MSL 4.0 section 5.1.3
// header
[[kernel]] int second(device float* p [[buffer(0)]]) {  // BUG
  return int(p[0]);
}
// body
y[0] = x[0];

// Threadgroup variables are allocated in kernels only.
// because: threadgroup variable outside a kernel
// source: MSL 4.0 section 4.4
// header
float share(float v, uint i) {
  threadgroup float tile[32];  // BUG
  tile[i] = v;
  return tile[i];
}
// body
y[0] = share(x[0], thread_position_in_threadgroup.x);

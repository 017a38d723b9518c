// Atomic objects live in device or threadgroup memory.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
// header
void count(thread atomic_uint* p) {
  atomic_fetch_add_explicit(p, 1u, memory_order_relaxed);  // BUG
}
// body
y[0] = x[0];

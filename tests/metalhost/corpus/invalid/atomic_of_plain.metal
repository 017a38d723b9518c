// Atomic functions take pointers to atomic objects.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
// out: n uint32 32
atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);  // BUG
y[0] = x[0];

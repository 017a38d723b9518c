// The memory order is not optional.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
threadgroup atomic_uint count;
atomic_fetch_add_explicit(&count, 1u);  // BUG
y[0] = x[0];

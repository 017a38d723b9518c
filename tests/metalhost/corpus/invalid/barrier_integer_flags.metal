// mem_flags is an enum class.
// because: no matching function for call to 'threadgroup_barrier'
// source: MSL 4.0 table 6.13
threadgroup_barrier(2);  // BUG
y[0] = x[0];

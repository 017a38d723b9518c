// A barrier names the memory it orders.
// because: too few arguments to function call
// source: MSL 4.0 table 6.12
threadgroup_barrier();  // BUG
y[0] = x[0];

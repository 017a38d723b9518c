// A float matrix does not load from half memory.
// because: no matching function for call to 'simdgroup_load'
// source: MSL 4.0 table 6.9
// in: h float16 64
simdgroup_float8x8 m;
simdgroup_load(m, h, 8);  // BUG
y[0] = x[0];

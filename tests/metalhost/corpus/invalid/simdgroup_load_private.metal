// Matrices load from device or threadgroup memory.
// because: no matching function for call to 'simdgroup_load'
// source: MSL 4.0 table 6.9
float v[64];
v[0] = x[0];
simdgroup_float8x8 m;
simdgroup_load(m, v, 8);  // BUG
y[0] = v[0];

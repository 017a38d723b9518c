// simdgroup_matrix holds half, bfloat or float.
// because: simdgroup_matrix<int, 8, 8> is not supported
// source: MSL 4.0 section 2.4
simdgroup_matrix<int, 8, 8> m;  // BUG
simdgroup_multiply(m, m, m);
y[0] = x[0];

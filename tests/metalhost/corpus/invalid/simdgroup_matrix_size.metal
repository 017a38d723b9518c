// simdgroup_matrix is 8 by 8.
// because: simdgroup_matrix<float, 16, 16> is not supported
// source: MSL 4.0 section 2.4
simdgroup_matrix<float, 16, 16> m;  // BUG
simdgroup_multiply(m, m, m);
y[0] = x[0];

// The second size of make_filled_simdgroup_matrix is the first one where it is left out.
// out: y float32 64 = 2.5
simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8>(2.5f);
simdgroup_store(m, y, 8);

// d = a * b + c on 8x8 matrices of a simdgroup.
// in: a float32 8x8 = 0..63
// in: b float32 8x8 = 1 0 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1
// out: y float32 8x8 = 5 7 7..13 23 15..21 39 23..29 55 31..37 71 39..45 87 47..53 103 55..61 119 63..68
// grid: 32
// threadgroup: 32
simdgroup_float8x8 ma;
simdgroup_float8x8 mb;
simdgroup_float8x8 mc = make_filled_simdgroup_matrix<float, 8, 8>(5.0f);
simdgroup_load(ma, a, 8);
simdgroup_load(mb, b, 8);
simdgroup_float8x8 md;
simdgroup_multiply_accumulate(md, ma, mb, mc);
simdgroup_store(md, y, 8);

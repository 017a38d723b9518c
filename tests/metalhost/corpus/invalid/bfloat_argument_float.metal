// A float is passed where bfloat is expected.
// because: no matching function for call to 'keep'
// source: MSL 4.0 section 2.22
// header
bfloat keep(bfloat v) { return v; }
// body
y[0] = keep(x[0]);  // BUG

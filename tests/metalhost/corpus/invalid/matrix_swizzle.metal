// A matrix has no components by letter.
// because: no member named 'x' in 'metal::matrix<float, 2, 2>'
// source: MSL 4.0 section 2.3.1
float2x2 m = float2x2(x[0]);
y[0] = m.x;  // BUG

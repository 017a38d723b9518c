// half does not convert to bfloat implicitly.
// because: cannot initialize a variable of type 'bfloat' with an lvalue of type 'half'
// source: MSL 4.0 section 2.22
half h = half(x[0]);
bfloat b = h;  // BUG
y[0] = b;

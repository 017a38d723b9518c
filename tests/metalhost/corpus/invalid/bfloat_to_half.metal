// bfloat does not convert to half implicitly.
// because: cannot initialize a variable of type 'half' with an lvalue of type 'bfloat'
// source: MSL 4.0 section 2.22
bfloat b = bfloat(x[0]);
half h = b;  // BUG
y[0] = h;

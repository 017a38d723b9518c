// The operators do not mix bfloat and half.
// because: invalid operands to binary expression ('bfloat' and 'half')
// source: MSL 4.0 section 3.1 item 1
bfloat b = bfloat(x[0]);
half h = half(x[1]);
y[0] = float(b + h);  // BUG

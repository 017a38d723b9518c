// << takes integers.
// because: invalid operands to binary expression ('float' and 'int')
// source: MSL 4.0 section 3.1 item 11
y[0] = x[0] << 1;  // BUG

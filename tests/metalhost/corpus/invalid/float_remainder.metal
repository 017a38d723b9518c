// % takes integers.
// because: invalid operands to binary expression ('float' and 'float')
// source: MSL 4.0 section 3.1 item 2
y[0] = x[0] % 2.0f;  // BUG

// ~ takes integers.
// because: invalid argument type 'float' to unary expression
// source: MSL 4.0 section 3.1 item 11
y[0] = ~x[0];  // BUG

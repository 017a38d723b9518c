// Two element types of one size.
// because: invalid operands to binary expression ('half2' and 'short2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
half2 v = half2(x[i]) - short2(1); // BUG
y[i] = v.x;

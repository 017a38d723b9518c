// A signed and an unsigned vector are two types.
// because: invalid operands to binary expression ('int2' and 'uint2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
int2 v = int2(int(i)) * uint2(i); // BUG
y[i] = v.x;

// Operands of different element types: nothing is converted, and no bits are reinterpreted.
// because: invalid operands to binary expression ('float4' and 'int4')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float4 v = float4(x[i]) + int4(1); // BUG
y[i] = v.x;

// Both sides of a choice have one vector type.
// because: incompatible operand types ('float2' and 'int2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float2 v = i > 4 ? float2(x[i]) : int2(1); // BUG
y[i] = v.x;

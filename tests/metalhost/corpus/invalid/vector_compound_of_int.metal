// A compound assignment converts no vector either.
// because: invalid operands to binary expression ('float3' and 'int3')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float3 v = float3(x[i]);
v *= int3(2); // BUG
y[i] = v.x;

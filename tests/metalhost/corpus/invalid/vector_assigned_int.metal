// An assignment converts no vector.
// because: assigning to 'float4' from incompatible type 'int4'
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float4 v = float4(x[i]);
int4 w = int4(1);
v = w; // BUG
y[i] = v.x;

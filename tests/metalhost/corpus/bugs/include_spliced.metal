// The directive is split by a line continuation and spelled with a digraph.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
%: /* BUG */ inc\
lude "/etc/passwd"
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

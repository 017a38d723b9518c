// A component cannot be bound to a reference.
// because: non-const reference cannot bind to vector element
// source: MSL 4.0 section 2.2.1
// header
void bump(thread float& v) { v += 1.0f; }
// body
float4 v = float4(x[0]);
bump(v.x);  // BUG
y[0] = v.x;

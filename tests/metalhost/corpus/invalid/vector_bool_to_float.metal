// A bool vector does not become a float vector.
// because: cannot initialize a variable of type 'float2' with an lvalue of type 'bool2'
// source: MSL 4.0 section 2.22
bool2 b = bool2(true, false);
float2 f = b;  // BUG
y[0] = x[0] + f.x;

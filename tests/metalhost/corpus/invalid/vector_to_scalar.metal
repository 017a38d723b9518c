// A vector does not become a scalar.
// because: cannot initialize a variable of type 'float' with a 'float4'
// source: MSL 4.0 section 2.22
float v = float4(x[0]);  // BUG
y[0] = v;

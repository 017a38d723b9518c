// cross takes three components.
// because: no matching function for call to 'cross'
// source: MSL 4.0 table 6.11
y[0] = cross(float2(x[0]), float2(x[1])).x;  // BUG

// A float2 has no z.
// because: vector component access exceeds type 'float2'
// source: MSL 4.0 section 2.2.1
float2 v = float2(x[0]);
y[0] = v.z;  // BUG

// xyzw and rgba do not mix.
// because: illegal vector component name 'g'
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
y[0] = v.xg.x;  // BUG

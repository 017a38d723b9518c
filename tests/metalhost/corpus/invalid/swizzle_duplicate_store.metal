// One component twice on the left.
// because: vector is not assignable (contains duplicate components)
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
v.xx = float2(1.0f);  // BUG
y[0] = v.x;

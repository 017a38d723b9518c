// A swizzle has no address.
// because: address of vector element requested
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
thread float2* p = &v.xy;  // BUG
y[0] = p->x;

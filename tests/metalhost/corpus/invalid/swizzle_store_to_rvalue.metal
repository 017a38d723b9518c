// A swizzle of a value is not a place.
// because: expression is not assignable
// source: C++14 5.17
float4 v = float4(x[0]);
(v + 1.0f).x = 2.0f;  // BUG
y[0] = v.x;

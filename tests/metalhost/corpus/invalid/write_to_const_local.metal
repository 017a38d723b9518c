// A const local is assigned by swizzle.
// because: cannot assign to variable 'v' with const-qualified type
// source: C++14 7.1.6.1
const float4 v = float4(x[0]);
v.x = 1.0f;  // BUG
y[0] = v.x;

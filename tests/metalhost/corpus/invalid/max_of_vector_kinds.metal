// max of a float4 and a half4: vectors do not convert.
// because: no vector conversion makes the arguments alike
// source: MSL 4.0 section 2.22
y[0] = max(float4(x[0]), half4(1.0h)).x;  // BUG

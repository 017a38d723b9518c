// Nor does float4 to half4.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
half4 h = float4(x[0]);  // BUG
y[0] = float(h.x);

// Vectors of different element types do not convert.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
int4 i = int4(1);
float4 f = i;  // BUG
y[0] = x[0] + f.x;

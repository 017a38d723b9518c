// bfloat += float computes in float and converts back implicitly.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 sections 2.22 and 3.1
bfloat b = bfloat(1.0f);
b += x[0];  // BUG
y[0] = b;

// A float is assigned to a bfloat.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 section 2.22; pytorch/executorch issue 16984
bfloat b = bfloat(1.0f);
b = x[0];  // BUG
y[0] = b;

// The output element is bfloat, the accumulator float: the most common slip in bf16 kernels.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 section 2.22; pytorch/executorch issue 16984
// out: z bfloat16 32
float acc = x[0] + x[1];
z[0] = acc;  // BUG
y[0] = acc;

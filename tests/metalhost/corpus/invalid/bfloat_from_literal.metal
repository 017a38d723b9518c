// A plain literal is a float, so it does not fit a bfloat either.
// because: float literals need bfloat(...)
// source: MSL 4.0 section 2.22; tracel-ai/cubecl issue 1201
bfloat b = 0.0;  // BUG
y[0] = b;

// A float initialises a bfloat without a cast.
// because: cannot initialize a variable of type 'bfloat' with an rvalue of type 'float'
// source: MSL 4.0 section 2.22; tracel-ai/cubecl issue 1522
bfloat b = x[0] * 2.0f;  // BUG
y[0] = b;

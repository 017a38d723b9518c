// There is no float5.
// because: unknown type name 'float5'
// source: MSL 4.0 section 2.2
float5 v;  // BUG
y[0] = x[0];

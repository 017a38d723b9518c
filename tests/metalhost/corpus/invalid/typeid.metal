// No type identification at run time.
// because: typeid is not supported
// source: MSL 4.0 section 1.5.4
bool same = &typeid(x[0]) == &typeid(y[0]);  // BUG
y[0] = x[0] + float(same);

// A function of one's own with the signature of a library function.
// because: call to 'max' is ambiguous
// source: MSL 4.0 section 6.1 (using namespace metal)
// header
float max(float a, float b) { return a > b ? a : b; }
// body
y[0] = max(x[0], x[1]);  // BUG

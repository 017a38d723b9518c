// Nor do its headers.
// because: 'vector' file not found
// source: MSL 4.0 section 1.5.4
// header
#include <vector>  // BUG
// body
y[0] = x[0];

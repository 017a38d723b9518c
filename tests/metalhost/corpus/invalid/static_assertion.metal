// A failed static assertion, as of a template argument out of range.
// because: static_assert failed
// source: C++14 7
static_assert(sizeof(float3) == 12, "packed_float3 is the type of 12 bytes");  // BUG
y[0] = x[0];

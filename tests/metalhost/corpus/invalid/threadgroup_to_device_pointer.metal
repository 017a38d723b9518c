// A threadgroup array is passed to a function that takes a device pointer.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// header
float first(const device float* p) { return *p; }
// body
threadgroup float tile[32];
tile[thread_position_in_threadgroup.x] = x[0];
y[0] = first(tile);  // BUG

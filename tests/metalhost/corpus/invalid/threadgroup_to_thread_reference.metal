// A threadgroup element is bound to a thread reference.
// because: no matching function for call to 'bump'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// header
void bump(thread float& v) { v += 1.0f; }
// body
threadgroup float tile[32];
tile[thread_position_in_threadgroup.x] = x[0];
bump(tile[0]);  // BUG
y[0] = x[0];

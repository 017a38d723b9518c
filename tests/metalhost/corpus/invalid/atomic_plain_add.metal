// An atomic object is changed by atomic functions only.
// because: no viable overloaded '+='
// source: MSL 4.0 section 2.6
threadgroup atomic_uint count;
count += 1u;  // BUG
y[0] = x[0];

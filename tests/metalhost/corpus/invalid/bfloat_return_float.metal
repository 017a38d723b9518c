// A function that returns bfloat returns a float expression.
// because: cannot initialize return object of type 'bfloat' with an rvalue of type 'float'
// source: MSL 4.0 section 2.22
// header
bfloat twice(bfloat v) {
  return float(v) * 2.0f;  // BUG
}
// body
y[0] = twice(bfloat(x[0]));

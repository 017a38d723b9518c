// No virtual functions.
// because: virtual functions are not supported
// source: MSL 4.0 section 1.5.4
// header
struct Shape {
  virtual float area() const { return 1.0f; }  // BUG
};
// body
Shape s;
y[0] = x[0] + s.area();

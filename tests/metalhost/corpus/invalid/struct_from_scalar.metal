// A scalar is not cast to a struct.
// because: no matching conversion for C-style cast from 'float' to 'S'
// source: C++14 5.4
// header
struct S {
  float a;
};
// body
S s = (S)x[0];  // BUG
y[0] = s.a;

// A pointer member without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4
// header
struct View {
  const float* data;  // BUG
};
// body
View v;
y[0] = x[0];

// A struct with constructors, methods, operators and a nested type.
// in: x float32 8 = 0..7
// out: y float32 8 = 2 4 6 8 10 12 14 16
// grid: 8
// threadgroup: 8
// header
struct Complex {
  float re;
  float im;
  Complex() = default;
  Complex(float r, float i) : re(r), im(i) {}
  float sum() const { return re + im; }
  Complex operator+(thread const Complex& o) const { return Complex(re + o.re, im + o.im); }
  thread Complex& operator+=(Complex o) {
    re += o.re;
    im += o.im;
    return *this;
  }
};
// body
uint i = thread_position_in_grid.x;
Complex a = Complex(x[i], x[i]);
Complex b(1.0f, 1.0f);
Complex c = a + b;
c += Complex(-1.0f, 1.0f);
y[i] = c.sum();

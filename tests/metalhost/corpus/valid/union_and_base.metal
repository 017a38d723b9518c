// Unions and derived classes are used by MLX's own kernels.
// out: y uint32 2 = 1065353216 9
// grid: 1
// threadgroup: 1
// header
union Bits {
  float f;
  uint u;
};
struct Base {
  uint v = 4;
};
struct Derived : Base {
  uint w = 5;
};
struct yes : metal::bool_constant<true> {};
// body
Bits b;
b.f = 1.0f;
y[0] = b.u;
Derived d;
y[1] = yes::value ? d.v + d.w : 0;

// Function templates, specialisation, if constexpr, variadic packs and overloads by address space.
// in: x float32 8 = 0..7
// out: y float32 8 = 21 27 33 39 45 51 57 63
// grid: 8
// threadgroup: 8
// header
template <typename T, int N>
struct Scale {
  static constexpr constant int factor = N;
  static T apply(T v) { return v * T(N); }
};
template <typename T>
struct Scale<T, 0> {
  static T apply(T) { return T(0); }
};
template <bool Twice, typename T>
T maybe_twice(T v) {
  if constexpr (Twice) {
    return v + v;
  } else {
    return v;
  }
}
template <typename T>
T total(T v) {
  return v;
}
template <typename T, typename... Rest>
T total(T v, Rest... rest) {
  return v + total(rest...);
}
inline int space(const device float*) { return 20; }
inline int space(const threadgroup float*) { return 30; }
inline int space(const thread float*) { return 40; }
// body
uint i = thread_position_in_grid.x;
float v = maybe_twice<true>(Scale<float, 3>::apply(x[i])) + Scale<float, 0>::apply(5.0f);
y[i] = total(v, 1.0f) + float(space(x));

// Vectors initialised in parentheses: components, one scalar for all, several declarators, parts.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 10 4 15 6
// grid: 1
// threadgroup: 1
// header
inline float total(float4 v) { return v.x + v.y + v.z + v.w; }
float2 both(float a, float b);
float2 both(float a, float b) {
  const float2 v(a, b);
  return v;
}
struct Pair {
  float2 of(float2 a) const thread { float2 b(a); return b; }
};
// body
float4 a(x[0], x[1], x[2], x[3]);
float2 s(x[1]), t(1, 2), u(s * t);
uint3 n(1u, 2u, 3u);
half4 h(half2(1), half(2), half(3));
vec<float, 3> w(t, 12.0f);
Pair p;
y[0] = total(a);
y[1] = u.y;
y[2] = w.x + w.y + w.z;
y[3] = float(h.w) + both(float(n.x), 2.0f).x + p.of(t).y;

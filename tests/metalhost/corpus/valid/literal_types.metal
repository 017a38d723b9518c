// Literals without a suffix are float, never double.
// out: y int32 4 = 4 2 2 4
// grid: 1
// threadgroup: 1
auto f = 1.0;
auto h = 1.0h;
auto b = 1.0bf;
y[0] = sizeof(f);
y[1] = sizeof(h);
y[2] = sizeof(b);
y[3] = sizeof(0.1 * 2);
static_assert(is_same_v<decltype(1.0), float>, "float");

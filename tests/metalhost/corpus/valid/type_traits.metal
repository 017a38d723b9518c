// The metal type traits and conditional types.
// template: T=bfloat16
// in: x bfloat16 8 = 1..8
// out: y float32 8 = 2..9
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
using Acc = conditional_t<sizeof(T) == 2, float, T>;
static_assert(is_same_v<Acc, float>, "accumulates in float");
static_assert(is_floating_point_v<float> && is_integral_v<int> && !is_same_v<int, uint>, "traits");
Acc a = static_cast<Acc>(x[i]);
y[i] = a + Acc(is_same<T, bfloat>::value);

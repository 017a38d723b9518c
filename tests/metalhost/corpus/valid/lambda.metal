// Lambdas, since Metal 3.2.
// in: x float32 8 = 0..7
// out: y float32 8 = 1 4 7 10 13 16 19 22
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float k = 3.0f;
auto f = [=](float v) { return k * v + 1.0f; };
y[i] = f(x[i]);

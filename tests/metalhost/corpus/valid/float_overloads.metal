// max, min and clamp for float, half, bfloat and vectors, literals included.
// in: x float32 8 = -4 -3 -2 -1 0 1 2 3
// out: y float32 8 = -3..0 2 5 6 7
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float v = x[i];
half h = max(half(v), 1.0h);
bfloat b = min(bfloat(1.0f), bfloat(2.0f));
float4 c = clamp(float4(v), -1.0f, 1.0f);
float r = max(v, 0.0f) + metal::min(v, 1.0f) + min(float(h), 1.0f) + float(b);
y[i] = r + c.y;

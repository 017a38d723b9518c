// bfloat with bfloat stays bfloat, bfloat with float is float.
// in: x bfloat16 8 = 1 2 3 4 5 6 7 8
// out: y bfloat16 8 = 2.5 5 7.5 10 12.5 15 17.5 20
// out: z float32 8 = 1.001953125 2.001953125 3.001953125 4.001953125 5.001953125 6.001953125 7.001953125 8.001953125
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
bfloat b = x[i] * 2.5bf;
y[i] = b;
z[i] = x[i] + 0.001953125f;

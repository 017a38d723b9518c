// clamp, mix, saturate, sign, step, smoothstep, fma, copysign, fdim, fmin and fmax.
// in: x float32 8 = -2 -0.5 0 0.25 0.5 0.75 1 3
// out: y float32 88 = -1 -3 0 -1 0 0 -1 -2 0 -2 0.5 -0.5 0 0 -1 0 0 2 -0.5 0 -0.5 0.5 0 1 0 0 0 0 3 0 0 0 0.5 0.25 1.5 0.25 1 0 0.15625 3.5 -0.25 0 0.25 0.5 0.5 2 0.5 1 1 0.5 4 -0.5 0 0.5 0.5 0.75 2.5 0.75 1 1 0.84375 4.5 -0.75 0.25 0.5 0.75 1 3 1 1 1 1 5 -1 0.5 0.5 1 1 7 1 1 1 1 9 -3 2.5 0.5 3
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 11 * i;
float v = x[i];
w[0] = clamp(v, -1.0f, 1.0f);
w[1] = mix(1.0f, 3.0f, v);
w[2] = saturate(v);
w[3] = sign(v);
w[4] = step(0.5f, v);
w[5] = smoothstep(0.0f, 1.0f, v);
w[6] = fma(v, 2.0f, 3.0f);
w[7] = copysign(v, -1.0f);
w[8] = fdim(v, 0.5f);
w[9] = fmin(v, 0.5f);
w[10] = fmax(v, 0.5f);

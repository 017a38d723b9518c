// Math functions work component by component, for half as well.
// in: x float32 8 = 0 1 2 3 4 5 6 7
// out: y float32 8 = 1 2 4 8 16 32 64 128
// out: z float16 4 = 0 1 2 3
// grid: 2
// threadgroup: 2
uint i = thread_position_in_grid.x;
device float4* w = (device float4*)y;
w[i] = exp2(((const device float4*)x)[i]);
if (i == 0) {
  half4 h = half4(0.0h, 1.0h, 4.0h, 9.0h);
  ((device half4*)z)[0] = sqrt(h);
}

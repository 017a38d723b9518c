// Half vectors and literals; sums round to half.
// in: x float16 8 = 1 2 3 4 0.5 0.25 0.125 2048
// out: y float16 8 = 1.5 2.25 3.125 2052 0.5 0.5 0.375 8192
// grid: 1
// threadgroup: 1
const device half4* v = (const device half4*)x;
device half4* w = (device half4*)y;
w[0] = v[0] + v[1];
w[1] = v[0] * v[1] * 1.0h;

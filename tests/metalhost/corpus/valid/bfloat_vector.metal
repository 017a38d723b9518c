// bfloat vectors: arithmetic, conversion to float4 and back, reinterpretation of the bits.
// in: x bfloat16 8 = 1 2 3 4 5 6 7 8
// out: y bfloat16 8 = 6 8 10 12 0.5 1 1.5 2
// out: bits uint16 4 = 16256 16384 16448 16512
// grid: 1
// threadgroup: 1
const device bfloat4* v = (const device bfloat4*)x;
device bfloat4* w = (device bfloat4*)y;
w[0] = v[0] + v[1];
w[1] = bfloat4(float4(v[0]) * 0.5f);
device ushort4* b = (device ushort4*)bits;
b[0] = as_type<ushort4>(v[0]);

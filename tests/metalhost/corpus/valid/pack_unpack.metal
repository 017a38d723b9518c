// Packing of normalised integers.
// out: y uint32 2 = 4294902015 1
// out: z float32 4 = 1 0 1 1
// grid: 1
// threadgroup: 1
y[0] = pack_float_to_unorm4x8(float4(1.0f, 0.0f, 1.0f, 1.0f));
float4 u = unpack_unorm4x8_to_float(0xffff00ffu);
y[1] = pack_float_to_snorm2x16(float2(0.0f)) == 0u;
((device float4*)z)[0] = u;

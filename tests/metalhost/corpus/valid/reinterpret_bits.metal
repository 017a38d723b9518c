// as_type between types of one size, float4 to float3 included.
// out: y uint32 8 = 1065353216 1073741824 15360 16256 3 4 1 1
// grid: 1
// threadgroup: 1
y[0] = as_type<uint>(1.0f);
y[1] = as_type<uint2>(float2(1.0f, 2.0f)).y;
y[2] = as_type<ushort>(1.0h);
y[3] = as_type<ushort>(bfloat(1.0f));
short2 s = as_type<short2>(0x00040003);
y[4] = uint(s.x);
y[5] = uint(s.y);
float3 t = as_type<float3>(float4(1.0f, 2.0f, 3.0f, 4.0f));
y[6] = uint(t.x);
y[7] = as_type<float>(0x3f800000) == 1.0f;

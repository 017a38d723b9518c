// Sizes and alignments of MSL table 2.3 and 2.4, checked at compile time.
// out: y int32 8 = 12 16 6 8 3 4 32 1
// grid: 1
// threadgroup: 1
static_assert(sizeof(float3) == 16 && alignof(float3) == 16, "float3");
static_assert(sizeof(half3) == 8 && alignof(half4) == 8, "half");
static_assert(sizeof(bool3) == 4 && sizeof(bool4) == 4 && sizeof(bool2) == 2, "bool");
static_assert(sizeof(bfloat4) == 8 && sizeof(bfloat2) == 4, "bfloat");
static_assert(sizeof(uchar3) == 4 && alignof(short2) == 4, "small");
static_assert(alignof(packed_float3) == 4 && alignof(packed_half4) == 2, "packed");
static_assert(sizeof(long) == 8 && sizeof(ulong2) == 16 && sizeof(size_t) == 8, "long");
static_assert(sizeof(float4x4) == 64 && sizeof(half3x3) == 24 && sizeof(float2x3) == 32, "matrix");
y[0] = sizeof(packed_float3);
y[1] = sizeof(float3);
y[2] = sizeof(packed_half3);
y[3] = sizeof(half3);
y[4] = sizeof(packed_uchar3);
y[5] = sizeof(uchar3);
y[6] = sizeof(long3);
y[7] = sizeof(bool);

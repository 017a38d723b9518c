// Non-square matrices, transpose, determinant, the diagonal constructor and element access.
// out: y float32 9 = 14 32 3 2 -2 5 0 9 1
// grid: 1
// threadgroup: 1
float2x3 m = float2x3(float3(1.0f, 2.0f, 3.0f), float3(4.0f, 5.0f, 6.0f));
float3x2 t = transpose(m);
float2 r = t * float3(1.0f, 2.0f, 3.0f);
y[0] = r.x;
y[1] = r.y;
y[2] = m[0][2];
y[3] = t[1].x;
y[4] = determinant(float2x2(1.0f, 2.0f, 3.0f, 4.0f));
float4x4 d = float4x4(5.0f);
y[5] = d[3][3];
y[6] = d[3][2];
d[1] = float4(9.0f);
y[7] = d[1].z;
half3x3 h = half3x3(1.0h);
y[8] = float(h[2][2]);

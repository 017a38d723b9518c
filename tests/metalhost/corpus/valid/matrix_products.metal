// Matrices are column major: m * v, v * m, m * n and m * scalar.
// out: y float32 12 = 7 10 5 11 7 10 15 22 2 4 6 8
// grid: 1
// threadgroup: 1
float2x2 m = float2x2(float2(1.0f, 2.0f), float2(3.0f, 4.0f));
float2 v = float2(1.0f, 2.0f);
device float2* w = (device float2*)y;
w[0] = m * v;
w[1] = v * m;
float2x2 n = m * m;
w[2] = n[0];
w[3] = n[1];
float2x2 k = 2.0f * m;
w[4] = k[0];
w[5] = k[1];

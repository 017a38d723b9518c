// dot, cross, length, distance, normalize, their squares and reflect.
// out: y float32 10 = 32 -3 6 -3 5 25 5 0.6 0.8 -1
// grid: 1
// threadgroup: 1
float3 a = float3(1.0f, 2.0f, 3.0f);
float3 b = float3(4.0f, 5.0f, 6.0f);
y[0] = dot(a, b);
float3 c = cross(a, b);
y[1] = c.x;
y[2] = c.y;
y[3] = c.z;
float2 d = float2(3.0f, 4.0f);
y[4] = length(d);
y[5] = length_squared(d);
y[6] = distance(d, float2(0.0f));
float2 n = normalize(d);
y[7] = n.x;
y[8] = n.y;
y[9] = reflect(float2(1.0f, -1.0f), float2(1.0f, 0.0f)).x;

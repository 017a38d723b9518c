// The named constants and numeric_limits.
// out: y float32 10 = 3.1415927 1.442695 0.6931472 3.4028234663852886e+38 65504 1 1 1.1920929e-07 0.0009765625 -3.4028234663852886e+38
// grid: 1
// threadgroup: 1
y[0] = M_PI_F;
y[1] = M_LOG2E_F;
y[2] = M_LN2_F;
y[3] = MAXFLOAT;
y[4] = MAXHALF;
y[5] = isinf(INFINITY);
y[6] = isnan(NAN);
y[7] = numeric_limits<float>::epsilon();
y[8] = numeric_limits<half>::epsilon();
y[9] = -numeric_limits<float>::max();

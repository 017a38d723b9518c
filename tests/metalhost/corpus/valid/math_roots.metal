// sqrt, rsqrt, and the fast and precise namespaces.
// in: x float32 8 = 0.25 1 2 3 4 9 16 25
// out: y float32 56 = 0.5 2 0.7788008 0.8408964 -1.3862944 2 0.5 1 1 0.36787945 0.5 0 1 1 1.4142135 0.70710677 0.13533528 0.25 0.6931472 0.70710677 1.4142135 1.7320508 0.57735026 0.049787067 0.125 1.0986123 0.57735026 1.7320508 2 0.5 0.01831564 0.0625 1.3862944 0.5 2 3 0.33333334 0.0001234098 0.001953125 2.1972246 0.33333334 3 4 0.25 1.12535176e-07 1.5258789e-05 2.7725887 0.25 4 5 0.2 1.3887944e-11 2.9802322e-08 3.218876 0.2 5
// tolerance: 1e-5
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 7 * i;
float v = x[i];
w[0] = sqrt(v);
w[1] = rsqrt(v);
w[2] = fast::exp(-v);
w[3] = fast::exp2(-v);
w[4] = metal::precise::log(v);
w[5] = metal::precise::rsqrt(v);
w[6] = metal::fast::sqrt(v);

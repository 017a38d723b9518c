// A private array of 64 MiB per thread.
// finds: stack-overflow memory-limit
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float a[16 * 1024 * 1024];  // BUG
for (uint j = 0; j < 16 * 1024 * 1024; ++j) {
  a[j] = x[i] + float(j);
}
y[i] = a[uint(x[i]) & 1023];

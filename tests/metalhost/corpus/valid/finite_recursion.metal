// Recursion is allowed in kernels since Metal 2.4.
// out: y int32 8 = 1 1 2 6 24 120 720 5040
// grid: 8
// threadgroup: 8
// header
int factorial(int n) {
  return n < 2 ? 1 : n * factorial(n - 1);
}
// body
uint i = thread_position_in_grid.x;
y[i] = factorial(int(i));

// A row of x + y, and its RMS norm times a weight, by one threadgroup of THREADS.
//
// Rows of N; each thread keeps its numbers of the sum in registers. As MLX does: the sum of squares
// in float32, and the normed number rounded to T before the weight.
const uint row = threadgroup_position_in_grid.x;
const int mine = int(thread_position_in_threadgroup.x);

float values[EACH];
float squares = 0.0f;
for (int i = 0; i < EACH; ++i) {
  const int at = i * THREADS + mine;
  values[i] = 0.0f;
  if (at < N) {
    const T both = T(float(x[row * N + at]) + float(y[row * N + at]));
    sum[row * N + at] = both;
    values[i] = float(both);
    squares += values[i] * values[i];
  }
}

threadgroup float parts[THREADS / 32];
squares = simd_sum(squares);
if (mine % 32 == 0) parts[mine / 32] = squares;
threadgroup_barrier(mem_flags::mem_threadgroup);
squares = 0.0f;
for (int i = 0; i < THREADS / 32; ++i) squares += parts[i];

const float scale = metal::precise::rsqrt(squares / float(N) + EPS);
for (int i = 0; i < EACH; ++i) {
  const int at = i * THREADS + mine;
  if (at < N) normed[row * N + at] = T(float(T(values[i] * scale)) * float(weight[at]));
}

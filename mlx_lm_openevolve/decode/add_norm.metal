// A row of x + y, and its RMS norm times a weight, by one threadgroup of THREADS.
//
// Three axes [B, 1, N]; each thread keeps its elements of the sum in registers. As MLX does: sums of
// squares in float32, and the normed number rounded to T before the weight.
const uint row = threadgroup_position_in_grid.x;
const uint mine = thread_position_in_threadgroup.x;
const device T* a = x + row * x_strides[0];
const device T* b = y + row * y_strides[0];

float values[EACH];
float squares = 0.0f;
for (int i = 0; i < EACH; ++i) {
  const int at = i * THREADS + int(mine);
  values[i] = 0.0f;
  if (at < N) {
    const T both = T(float(a[at * x_strides[2]]) + float(b[at * y_strides[2]]));
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
  const int at = i * THREADS + int(mine);
  if (at < N) {
    const float rounded = float(T(values[i] * scale));
    normed[row * N + at] = T(rounded * float(weight[at * weight_strides[0]]));
  }
}

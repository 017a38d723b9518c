// What K experts return for a token, each times its score, added up in float32. A thread makes one of
// N numbers.
const uint row = threadgroup_position_in_grid.y;
const uint i = thread_position_in_grid.x;
if (i < N) {
  float sum = 0.0f;
  for (uint k = 0; k < K; ++k) sum += float(y[(row * K + k) * N + i]) * float(scores[row * K + k]);
  out[row * N + i] = T(sum);
}

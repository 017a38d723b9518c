// One warp answers one query head and walks all keys. Lane l of its 32 holds the elements l, l + 32,
// ... of a row.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
constexpr int PER_LANE = D / 32;
const int lane = threadIdx.x;
const int head = blockIdx.y;
const int batch = blockIdx.z;
const int kv_head = head / GROUP;

const T* query = queries + batch * queries_strides[0] + head * queries_strides[1];
const T* key = keys + batch * keys_strides[0] + kv_head * keys_strides[1];
const T* value = values + batch * values_strides[0] + kv_head * values_strides[1];

float q[PER_LANE], total[PER_LANE];
for (int i = 0; i < PER_LANE; ++i) {
  q[i] = scale[0] * float(query[(lane + 32 * i) * queries_strides[3]]);
  total[i] = 0.0f;
}

// Online softmax: `top` is the largest score so far, `sum` the weights relative to it.
float top = -INFINITY;
float sum = 0.0f;
for (int n = 0; n < keys_shape[2]; ++n) {
  if (MASKED && !mask[batch * mask_strides[0] + head * mask_strides[1] + n * mask_strides[3]]) {
    continue;
  }
  float score = 0.0f;
  for (int i = 0; i < PER_LANE; ++i) {
    score += q[i] * float(key[n * keys_strides[2] + (lane + 32 * i) * keys_strides[3]]);
  }
  for (int step = 16; step > 0; step /= 2) {
    score += __shfl_xor_sync(0xffffffff, score, step);
  }
  const float higher = fmaxf(top, score);
  const float shrink = expf(top - higher);
  const float weight = expf(score - higher);
  top = higher;
  sum = sum * shrink + weight;
  for (int i = 0; i < PER_LANE; ++i) {
    const float v = float(value[n * values_strides[2] + (lane + 32 * i) * values_strides[3]]);
    total[i] = total[i] * shrink + weight * v;
  }
}

for (int i = 0; i < PER_LANE; ++i) {
  const float result = sum > 0.0f ? total[i] / sum : 0.0f;
  out[(int64_t(batch) * gridDim.y + head) * D + lane + 32 * i] = T(result);
}

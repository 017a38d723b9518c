// The queries and keys of one token: RMS norm over a head where NORMS, then rotary positions. One
// simdgroup takes a head.
//
// q [B, HQ, 1, D] and k [B, HK, 1, D] are strided views. Of a head the first DIMS numbers turn, by
// pairs: neighbours where PAIRS, else the two halves. As MLX does: sums of squares and angles in
// float32, a normed number rounded to T before and after its weight.
const uint head = threadgroup_position_in_grid.x;
const uint batch = threadgroup_position_in_grid.y;
const int lane = int(thread_position_in_threadgroup.x);
const bool of_q = head < HQ;
const uint own = of_q ? head : head - HQ;
const device T* from = of_q ? q + batch * q_strides[0] + own * q_strides[1]
                            : k + batch * k_strides[0] + own * k_strides[1];
const long step = of_q ? q_strides[3] : k_strides[3];
device T* to = of_q ? q_out + (batch * HQ + own) * D : k_out + (batch * HK + own) * D;

float scale = 1.0f;
if (NORMS) {
  const float eps = of_q ? Q_EPS : K_EPS;
  float squares = 0.0f;
  for (int i = lane; i < D; i += 32) squares += float(from[i * step]) * float(from[i * step]);
  scale = metal::precise::rsqrt(simd_sum(squares) / float(D) + eps);
}
const device T* weight = of_q ? q_weight : k_weight;
const long w_step = of_q ? q_weight_strides[0] : k_weight_strides[0];

const float position = SCALE * float(offset[OFFSETS ? batch : 0]);
for (int i = lane; i < DIMS / 2; i += 32) {
  const float turn = FREQS ? 1.0f / float(freqs[i * freqs_strides[0]])
                           : metal::precise::exp2(-(float(i) / float(DIMS / 2)) * LOG2_BASE);
  const float angle = position * turn;
  const float c = metal::precise::cos(angle);
  const float s = metal::precise::sin(angle);
  const int one = PAIRS ? 2 * i : i;
  const int two = PAIRS ? 2 * i + 1 : i + DIMS / 2;
  float a = float(from[one * step]);
  float b = float(from[two * step]);
  if (NORMS) {
    a = float(T(float(T(a * scale)) * float(weight[one * w_step])));
    b = float(T(float(T(b * scale)) * float(weight[two * w_step])));
  }
  to[one] = T(a * c - b * s);
  to[two] = T(a * s + b * c);
}
for (int i = DIMS + lane; i < D; i += 32) {
  const float a = float(from[i * step]);
  to[i] = NORMS ? T(float(T(a * scale)) * float(weight[i * w_step])) : T(a);
}

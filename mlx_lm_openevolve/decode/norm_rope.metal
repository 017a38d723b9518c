// The queries and keys of one token, from the product that holds both: RMS norm over a head where
// NORMS, then rotary positions. One simdgroup takes a head.
//
// Of a row of `whole`, which is WIDTH wide, heads of D begin at Q_FIRST and at K_FIRST. Of a head the
// first DIMS numbers turn, by pairs: neighbours where PAIRS, else the two halves. As MLX does: the
// sum of squares and the angle in float32, a normed number rounded to T before and after its weight.
const uint head = threadgroup_position_in_grid.x;
const uint batch = threadgroup_position_in_grid.y;
const int lane = int(thread_position_in_threadgroup.x);
const bool of_q = head < HQ;
const uint own = of_q ? head : head - HQ;
const device T* from = whole + batch * WIDTH + (of_q ? Q_FIRST : K_FIRST) + own * D;
device T* to = of_q ? q_out + (batch * HQ + own) * D : k_out + (batch * HK + own) * D;

float scale = 1.0f;
if (NORMS) {
  float squares = 0.0f;
  for (int i = lane; i < D; i += 32) squares += float(from[i]) * float(from[i]);
  scale = metal::precise::rsqrt(simd_sum(squares) / float(D) + (of_q ? Q_EPS : K_EPS));
}
const device T* weight = of_q ? q_weight : k_weight;

const float position = SCALE * float(OFFSET);
for (int i = lane; i < DIMS / 2; i += 32) {
  const float turn = FREQS ? 1.0f / float(freqs[i])
                           : metal::precise::exp2(-(float(i) / float(DIMS / 2)) * LOG2_BASE);
  const float angle = position * turn;
  const float c = metal::precise::cos(angle);
  const float s = metal::precise::sin(angle);
  const int one = PAIRS ? 2 * i : i;
  const int two = PAIRS ? 2 * i + 1 : i + DIMS / 2;
  float a = float(from[one]);
  float b = float(from[two]);
  if (NORMS) {
    a = float(T(float(T(a * scale)) * float(weight[one])));
    b = float(T(float(T(b * scale)) * float(weight[two])));
  }
  to[one] = T(a * c - b * s);
  to[two] = T(a * s + b * c);
}
for (int i = DIMS + lane; i < D; i += 32) {
  to[i] = NORMS ? T(float(T(float(from[i]) * scale)) * float(weight[i])) : from[i];
}

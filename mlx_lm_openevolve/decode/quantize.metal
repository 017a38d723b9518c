// The keys and values of one token, quantised as mx.quantize does, in the words of a cache.
//
// Rows of D, of HK heads of keys and then HK of values in each of the batch's sequences; a thread
// makes one word of 32 bits, LANES neighbours share a group. Of each sequence the scales of all heads
// come before the biases. As MLX does: both in float32, rounded to T when all words are made; what is
// furthest from zero is met exactly.
const int word = int(thread_position_in_grid.x);
const int of = min(word, WORDS - 1);  // beyond the last one: along for the shuffles alone
const int row = of / WIDTH;
const int head = row % (2 * HK);
const int from = ((row / (2 * HK)) * HK + head % HK) * D + (of % WIDTH) * EACH;

float mine[EACH];
float low = INFINITY;
float high = 0.0f;
for (int i = 0; i < EACH; ++i) {
  mine[i] = float(head < HK ? keys[from + i] : values[from + i]);
  low = min(low, mine[i]);
  high = max(high, mine[i]);
}
for (ushort away = 1; away < LANES; away *= 2) {
  low = min(low, simd_shuffle_xor(low, away));
  high = max(high, simd_shuffle_xor(high, away));
}

const float bins = float((1 << BITS) - 1);
const bool side = abs(low) > abs(high);
const float edge = side ? low : high;
float scale = max((high - low) / bins, 1e-7f);
scale = side ? scale : -scale;
const float steps = round(edge / scale);
scale = steps == 0.0f ? scale : edge / steps;
const float bias = steps == 0.0f ? 0.0f : edge;

uint packed = 0;
for (int i = 0; i < EACH; ++i) {
  packed |= uint(min(round((mine[i] - bias) / scale), bins)) << (BITS * i);
}
if (word < WORDS) {
  words[word] = packed;
  if (word % LANES == 0) {
    const int first = ((row / (2 * HK)) * 4 * HK + head) * GROUPS + (of % WIDTH) / LANES;
    numbers[first] = T(scale);
    numbers[first + 2 * HK * GROUPS] = T(bias);
  }
}

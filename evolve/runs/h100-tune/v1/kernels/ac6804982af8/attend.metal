// What the combining launch needs: names of mask kinds, and the rows that see nothing.
constant constexpr float LOG2E = 1.44269504088896f;
constant constexpr float FLOOR = -1.7e38f;
constant constexpr int ADDITIVE = 3;

// A row that sees no key at all has equal weights on the keys with the largest mask value (on all
// of them under a bool or causal mask), as a softmax over equally hidden scores has; where every
// value is -infinity it is NaN. Rare, so that it is merely right: one thread, one column.
template <typename T, int MASK, typename Mask>
inline float blind(const device T* values, long value_stride, Mask mask, long mask_stride,
                   int kv_len) {
  float top = -INFINITY;
  for (int key = 0; key < kv_len; ++key) {
    top = max(top, MASK == ADDITIVE ? float(mask[key * mask_stride]) : 0.0f);
  }
  float sum = 0.0f;
  float count = 0.0f;
  for (int key = 0; key < kv_len; ++key) {
    if (MASK != ADDITIVE || float(mask[key * mask_stride]) == top) {
      sum += float(values[key * value_stride]);
      count += 1.0f;
    }
  }
  return top == -INFINITY ? NAN : sum / count;
}

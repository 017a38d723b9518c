// Eight bfloat16 as one uint4: one load where rows are aligned and dense. The other way is a function
// of its own, so that it takes no registers from the fast one.
__device__ __noinline__ uint4 att_slow8(const unsigned short* bits, long long stride) {
  unsigned int word[4];
  for (int i = 0; i < 4; ++i) {
    const unsigned int low = bits[2 * i * stride];
    const unsigned int high = bits[(2 * i + 1) * stride];
    word[i] = low | (high << 16);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}
template <bool FAST, typename T>
__device__ __forceinline__ uint4 att_load8(const T* row, int first, long long stride) {
  if constexpr (FAST) {
    return *reinterpret_cast<const uint4*>(row + first);
  } else {
    return att_slow8(reinterpret_cast<const unsigned short*>(row) + first * stride, stride);
  }
}
template <bool B>
struct AttFlag {
  static constexpr bool value = B;
};
// Two floats as a pair of bfloat16, the first in the low half.
__device__ __forceinline__ unsigned int att_pack2(float low, float high) {
  __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<unsigned int*>(&two);
}
// m16n8k16 with the rows 8 to 15 of A zero: only the upper half of the result is of use.
__device__ __forceinline__ void att_mma8(
    float& c0, float& c1, unsigned int a0, unsigned int a2, unsigned int b0, unsigned int b1) {
  float c2, c3;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %11, %12, %13};"
      : "=f"(c0), "=f"(c1), "=f"(c2), "=f"(c3)
      : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(0.0f), "f"(0.0f));
}

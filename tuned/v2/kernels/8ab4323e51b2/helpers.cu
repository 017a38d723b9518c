// Weights are read once: they should not push anything else out of L1.
__device__ __forceinline__ uint4 load_stream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// Eight 16-bit numbers of x as they lie in memory.
template <typename T>
__device__ __forceinline__ uint4 load_raw(const T* p, int64_t stride, bool fast) {
  uint4 raw;
  if (fast) {
    raw = *reinterpret_cast<const uint4*>(p);
  } else {
    T numbers[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) numbers[i] = p[i * stride];
    const unsigned short* bits = reinterpret_cast<const unsigned short*>(numbers);
    raw.x = bits[0] | uint32_t(bits[1]) << 16;
    raw.y = bits[2] | uint32_t(bits[3]) << 16;
    raw.z = bits[4] | uint32_t(bits[5]) << 16;
    raw.w = bits[6] | uint32_t(bits[7]) << 16;
  }
  return raw;
}
// 32 numbers of x as floats, with their largest and their sum.
template <typename T>
__device__ __forceinline__ void open_piece(const uint4* raw, float* v, float& most, float& sum) {
  most = 1e-30f;
  sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const T* numbers = reinterpret_cast<const T*>(&raw[j]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float number = float(numbers[k]);
      v[8 * j + k] = number;
      most = fmaxf(most, fabsf(number));
      sum += number;
    }
  }
}
// c (16 x 8) += a (16 x 16) * b (16 x 8) of half numbers, with float accumulators.
__device__ __forceinline__ void mma_halves(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// A piece (32 numbers) of each of 16 rows. A nibble alone in the low bits of a half is number * 2^-24, exactly (a
// subnormal number); four bits higher it is 16 times that, and x of those places is 16 times smaller.
__device__ __forceinline__ void mma_piece(float* c, uint4 low, uint4 high, const uint32_t* b) {
  const uint32_t low_words[4] = {low.x, low.y, low.z, low.w};
  const uint32_t high_words[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t u = low_words[j], v = high_words[j];
    mma_halves(c, u & 0x000f000fu, v & 0x000f000fu, u & 0x00f000f0u, v & 0x00f000f0u, b[4 * j], b[4 * j + 1]);
    const uint32_t p = u >> 8, q = v >> 8;
    mma_halves(c, p & 0x000f000fu, q & 0x000f000fu, p & 0x00f000f0u, q & 0x00f000f0u, b[4 * j + 2], b[4 * j + 3]);
  }
}
__device__ __forceinline__ uint32_t two_halves(float a, float b) {
  const __half2 two = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&two);
}
__device__ __forceinline__ uint2 load_stream2(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
// The lower or the upper of two 16-bit numbers in a word.
template <typename T>
__device__ __forceinline__ float pick(uint32_t word, bool upper) {
  const unsigned short bits = (unsigned short)(upper ? word >> 16 : word & 0xffffu);
  return float(*reinterpret_cast<const T*>(&bits));
}

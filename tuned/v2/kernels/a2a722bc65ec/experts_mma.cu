// Rows times the packed matrices of the experts that they go to, on NVIDIA tensor cores (mma.sync
// m16n8k16, sm_80 and later).
//
// An expert's matrix is the left operand: 16 outputs; x is the right one: 8 rows of that expert. Of
// fewer the last is repeated, and what comes of it is not written. So weights are read once for up
// to 8 rows, and one row costs what eight do. A warp makes TILES tiles of 16 outputs from some chunks
// of numbers; the warps of a block take these in turn and add up what they have.
//
// A number n is never converted: its four bits become the last of a bfloat16's mantissa, under the
// exponent of 128 the bits 0 to 3 (128 + n), under that of 2048 the bits 4 to 7 (2048 + 16 n).
// Scale s and bias b of a group stay out of the products:
//   sum x (s n + b) = s sum x (RAISE + n) + (b - RAISE s) sum x
// where RAISE is what was added, and the sum of x comes from the tensor cores as well: a product
// with ones.
//
// Which number a lane must hold depends on the order of the summed index, and that order is free.
// With g = lane / 4 and c = lane % 4 a lane holds a quarter of a group, in one piece: of outputs g
// and 8 + g, and of row g of x. A word's numbers lie in pairs apart, and so do x's:
//   4 bits: (0, 4) (1, 5) (2, 6) (3, 7)      8 bits: (0, 2) (1, 3)

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Both bits of a and b, or those of c, in one instruction (the compiler would take two).
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// A lane's words of a group, at once where they lie `wide`.
template <int COUNT>
__device__ inline void read_words(uint32_t (&to)[COUNT], const uint32_t* from, bool wide) {
  if (wide && COUNT % 4 == 0) {
#pragma unroll
    for (int i = 0; i + 3 < COUNT; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from + i));
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else if (wide && COUNT % 2 == 0) {
#pragma unroll
    for (int i = 0; i + 1 < COUNT; i += 2) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from + i));
      to[i] = two.x;
      to[i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      to[i] = __ldg(from + i);
    }
  }
}

// The scales or biases of one output for a chunk of groups, as they lie in memory.
template <int COUNT>
struct Shares {
  uint32_t word[(COUNT + 1) / 2];

  // `left`: how many there are before the output's end.
  __device__ void read(const __nv_bfloat16* from, bool aligned, int left) {
    if (aligned && COUNT == 8) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
      word[0] = four.x;
      word[COUNT / 8] = four.y;
      word[COUNT / 8 * 2] = four.z;
      word[COUNT / 8 * 3] = four.w;
    } else if (aligned && COUNT == 4) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
      word[0] = two.x;
      word[COUNT / 4 % 2] = two.y;
    } else if (aligned && COUNT == 2) {
      word[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    } else {
      const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
#pragma unroll
      for (int i = 0; i < COUNT; i += 2) {
        const uint32_t low = i < left ? __ldg(bits + i) : 0;
        const uint32_t high = i + 1 < COUNT && i + 1 < left ? __ldg(bits + i + 1) : 0;
        word[i / 2] = low | high << 16;
      }
    }
  }

  __device__ float number(int i) const {
    return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
  }
};

// What a lane needs of one row of x for a group: QUARTER numbers as pairs.
template <int QUARTER>
__device__ inline void read_numbers(uint32_t (&to)[QUARTER / 2], const __nv_bfloat16* from,
                                    bool wide) {
  if (wide) {
#pragma unroll
    for (int i = 0; i < QUARTER / 2; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + i / 4);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
    return;
  }
  const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
#pragma unroll
  for (int i = 0; i < QUARTER / 2; ++i) {
    to[i] = bits[2 * i] | uint32_t(bits[2 * i + 1]) << 16;
  }
}

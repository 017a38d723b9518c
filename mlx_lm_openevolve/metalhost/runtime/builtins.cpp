// Conversions that compilers leave to a support library: no such library is linked.
#include <stdint.h>
#include <string.h>

namespace {

float from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

uint32_t to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

}  // namespace

// Round to nearest, ties to even. The result is returned in a vector register like a float.
static uint16_t bfloat_bits(float f) {
  const uint32_t bits = to_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t half_bits(float f) {
  const uint32_t bits = to_bits(f);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t a = bits & 0x7fffffff;
  if (a > 0x7f800000) return uint16_t(sign | 0x7e00 | (a >> 13 & 0x3ff));
  if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (a < 0x38800000) {                                 // subnormal: add, so that the sum rounds
    const float magic = from_bits(a) + 0.5f;
    return uint16_t(sign | (to_bits(magic) - 0x3f000000));
  }
  return uint16_t(sign | ((a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13));
}

static float half_value(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t exponent = h >> 10 & 31, fraction = h & 0x3ff;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float f = float(fraction) * 5.9604644775390625e-08f;  // 2^-24
  return from_bits(sign | to_bits(f));
}

template <class To, class Bits>
static To as(Bits bits) {
  To to;
  memcpy(&to, &bits, sizeof to);
  return to;
}

extern "C" {
__bf16 __truncsfbf2(float f) { return as<__bf16>(bfloat_bits(f)); }
__bf16 __truncdfbf2(double d) { return as<__bf16>(bfloat_bits(float(d))); }
_Float16 __truncsfhf2(float f) { return as<_Float16>(half_bits(f)); }
_Float16 __truncdfhf2(double d) { return as<_Float16>(half_bits(float(d))); }
float __extendhfsf2(_Float16 h) { return half_value(as<uint16_t>(h)); }
}

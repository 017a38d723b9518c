// Included by math.h into metal, metal::fast and metal::precise.
MH_MATH1(acos, __builtin_acosf(x))
MH_MATH1(acosh, __builtin_acoshf(x))
MH_MATH1(asin, __builtin_asinf(x))
MH_MATH1(asinh, __builtin_asinhf(x))
MH_MATH1(atan, __builtin_atanf(x))
MH_MATH1(atanh, __builtin_atanhf(x))
MH_MATH1(ceil, __builtin_ceilf(x))
MH_MATH1(cos, __builtin_cosf(x))
MH_MATH1(cosh, __builtin_coshf(x))
MH_MATH1(cospi, mh::cospi(x))
MH_MATH1(exp, __builtin_expf(x))
MH_MATH1(exp2, __builtin_exp2f(x))
MH_MATH1(exp10, __builtin_expf(x * 2.30258509299404568402f))
MH_MATH1(fabs, __builtin_fabsf(x))
MH_MATH1(abs, __builtin_fabsf(x))
MH_MATH1(floor, __builtin_floorf(x))
MH_MATH1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MH_MATH1(log, __builtin_logf(x))
MH_MATH1(log2, __builtin_log2f(x))
MH_MATH1(log10, __builtin_log10f(x))
MH_MATH1(rint, __builtin_rintf(x))
MH_MATH1(round, __builtin_roundf(x))
MH_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))
MH_MATH1(sin, __builtin_sinf(x))
MH_MATH1(sinh, __builtin_sinhf(x))
MH_MATH1(sinpi, mh::sinpi(x))
MH_MATH1(sqrt, __builtin_sqrtf(x))
MH_MATH1(tan, __builtin_tanf(x))
MH_MATH1(tanh, __builtin_tanhf(x))
MH_MATH1(tanpi, mh::sinpi(x) / mh::cospi(x))
MH_MATH1(trunc, __builtin_truncf(x))
MH_MATH1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MH_MATH1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f)
MH_MATH2(atan2, __builtin_atan2f(x, y))
MH_MATH2(copysign, __builtin_copysignf(x, y))
MH_MATH2(divide, x / y)
MH_MATH2(fdim, __builtin_fdimf(x, y))
MH_MATH2(fmax, __builtin_fmaxf(x, y))
MH_MATH2(fmin, __builtin_fminf(x, y))
MH_MATH2(fmod, __builtin_fmodf(x, y))
MH_MATH2(nextafter, __builtin_nextafterf(x, y))
MH_MATH2(pow, __builtin_powf(x, y))
MH_MATH2(powr, __builtin_powf(x, y))
MH_MATH2(step, y < x ? 0.0f : 1.0f)
MH_MATH3(fma, __builtin_fmaf(x, y, z))
MH_MATH3(mix, x + (y - x) * z)
MH_MATH3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))
MH_MATH3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
MH_MATH3(fmedian3, __builtin_fmaxf(__builtin_fminf(x, y), __builtin_fminf(__builtin_fmaxf(x, y), z)))
MH_INLINE float smoothstep(float lo, float hi, float x) {
  const float t = saturate((x - lo) / (hi - lo));
  return t * t * (3.0f - 2.0f * t);
}
MH_INLINE half smoothstep(half lo, half hi, half x) {
  return half(smoothstep(float(lo), float(hi), float(x)));
}
MH_INLINE float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
MH_INLINE half ldexp(half x, int k) { return half(__builtin_ldexpf(float(x), k)); }
MH_INLINE int ilogb(float x) { return __builtin_ilogbf(x); }
MH_INLINE float frexp(float x, thread int& exponent) { return __builtin_frexpf(x, &exponent); }
MH_INLINE float modf(float x, thread float& whole) {
  whole = __builtin_truncf(x);
  return x - whole;
}
MH_INLINE float sincos(float x, thread float& cosine) {
  cosine = __builtin_cosf(x);
  return __builtin_sinf(x);
}

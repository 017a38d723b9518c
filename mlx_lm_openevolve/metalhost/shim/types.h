// Scalar types, traits and limits.
#pragma once
#include "spaces.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef unsigned long uintptr_t;

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define HUGE_VALF (__builtin_inff())
#define HUGE_VALH ((half)__builtin_inff())
#define MAXFLOAT 3.402823466e+38f
#define MAXHALF ((half)65504.0f)
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define FLT_DIG 6
#define FLT_MANT_DIG 24
#define FLT_RADIX 2
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-05f)
#define HALF_EPSILON ((half)9.765625e-04f)
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define SHRT_MAX 32767
#define SHRT_MIN (-32768)
#define USHRT_MAX 65535
#define CHAR_BIT 8
#define CHAR_MAX 127
#define CHAR_MIN (-128)
#define UCHAR_MAX 255
#define LONG_MAX 9223372036854775807l
#define LONG_MIN (-9223372036854775807l - 1)
#define ULONG_MAX 18446744073709551615ul
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_PI_H ((half)M_PI_F)
#define M_LOG2E_H ((half)M_LOG2E_F)

namespace metal {

using ::size_t, ::ptrdiff_t, ::int8_t, ::uint8_t, ::int16_t, ::uint16_t, ::int32_t, ::uint32_t;
using ::int64_t, ::uint64_t;

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;

template <class T> struct remove_const { typedef T type; };
template <class T> struct remove_const<const T> { typedef T type; };
template <class T> struct remove_volatile { typedef T type; };
template <class T> struct remove_volatile<volatile T> { typedef T type; };
template <class T> struct remove_cv {
  typedef typename remove_volatile<typename remove_const<T>::type>::type type;
};
template <class T> struct remove_reference { typedef T type; };
template <class T> struct remove_reference<T&> { typedef T type; };
template <class T> struct remove_reference<T&&> { typedef T type; };
template <class T> struct remove_addrspace { typedef T type; };
template <class T> struct remove_pointer { typedef T type; };
template <class T> struct remove_pointer<T*> { typedef T type; };
#define MH_SPACE(SPACE)                                              \
  template <class T> struct remove_addrspace<SPACE T> { typedef T type; }; \
  template <class T> struct remove_pointer<SPACE T*> { typedef T type; };
MH_SPACE(device) MH_SPACE(constant) MH_SPACE(threadgroup)
#undef MH_SPACE
template <class T> using remove_const_t = typename remove_const<T>::type;
template <class T> using remove_volatile_t = typename remove_volatile<T>::type;
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> using remove_reference_t = typename remove_reference<T>::type;
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T> using remove_pointer_t = typename remove_pointer<T>::type;
template <class T> struct add_const { typedef const T type; };
template <class T> using decay_t = remove_cv_t<remove_addrspace_t<remove_reference_t<T>>>;
template <class T> struct decay { typedef decay_t<T> type; };
template <class T> struct type_identity { typedef T type; };

template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
// A trait that the compiler knows, and the variable for its value.
#define MH_VALUE(NAME) \
  template <class... T> inline constexpr bool NAME##_v = NAME<T...>::value;
#define MH_TRAIT(NAME, KNOWN) \
  template <class T> struct NAME : bool_constant<KNOWN(T)> {}; MH_VALUE(NAME)
MH_VALUE(is_same)
MH_TRAIT(is_const, __is_const)
template <class T> struct is_void : is_same<remove_cv_t<T>, void> {};
MH_VALUE(is_void)
MH_TRAIT(is_pointer, __is_pointer)
MH_TRAIT(is_reference, __is_reference)
MH_TRAIT(is_array, __is_array)
MH_TRAIT(is_enum, __is_enum)
MH_TRAIT(is_class, __is_class)
MH_TRAIT(is_empty_base, __is_empty)
MH_TRAIT(is_trivially_copyable, __is_trivially_copyable)
template <class A, class B> struct is_base_of : bool_constant<__is_base_of(A, B)> {};
template <class A, class B> struct is_convertible : bool_constant<__is_convertible_to(A, B)> {};
template <> struct is_convertible<float, bfloat> : false_type {};
template <> struct is_convertible<half, bfloat> : false_type {};
template <> struct is_convertible<bfloat, half> : false_type {};
template <class T, class... A>
struct is_constructible : bool_constant<__is_constructible(T, A...)> {};

namespace mh_traits {
template <class T, class... Any>
inline constexpr bool one_of = (__is_same(T, Any) || ...);
template <class T>
inline constexpr bool integral = one_of<T, bool, char, signed char, unsigned char, short, unsigned short,
                                        int, unsigned, long, unsigned long>;
template <class T> inline constexpr bool floating = one_of<T, float, half, bfloat>;
}  // namespace mh_traits
template <class T> struct is_integral : bool_constant<mh_traits::integral<decay_t<T>>> {};
template <class T> struct is_floating_point : bool_constant<mh_traits::floating<decay_t<T>>> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T> struct is_scalar : bool_constant<__is_scalar(decay_t<T>)> {};
template <class T> struct is_signed : bool_constant<is_floating_point<T>::value || __is_signed(decay_t<T>)> {};
template <class T> struct is_unsigned : bool_constant<__is_unsigned(decay_t<T>)> {};
template <class... T> struct conjunction : bool_constant<(T::value && ...)> {};
template <class... T> struct disjunction : bool_constant<(T::value || ...)> {};
template <class... T> using _disjunction = disjunction<T...>;
template <class T> struct negation : bool_constant<!T::value> {};
MH_VALUE(is_integral) MH_VALUE(is_floating_point) MH_VALUE(is_arithmetic) MH_VALUE(is_scalar)
MH_VALUE(is_signed) MH_VALUE(is_unsigned) MH_VALUE(is_base_of) MH_VALUE(is_convertible)
MH_VALUE(is_constructible) MH_VALUE(conjunction) MH_VALUE(disjunction)
#undef MH_TRAIT
#undef MH_VALUE

template <class T> struct make_signed { typedef __make_signed(T) type; };
template <class T> struct make_unsigned { typedef __make_unsigned(T) type; };
template <class T> using make_signed_t = typename make_signed<T>::type;
template <class T> using make_unsigned_t = typename make_unsigned<T>::type;
template <class T> T&& declval() noexcept;

template <class T> MH_INLINE constexpr remove_reference_t<T>&& move(T&& x) {
  return static_cast<remove_reference_t<T>&&>(x);
}
template <class T> MH_INLINE constexpr void swap(thread T& a, thread T& b) {
  T t = a;
  a = b;
  b = t;
}

template <class T> struct numeric_limits { static constexpr bool is_specialized = false; };
template <class T>
struct mh_integer_limits {
  static constexpr bool is_specialized = true, is_integer = true, is_exact = true;
  static constexpr bool is_signed = T(-1) < T(0), has_infinity = false, has_quiet_NaN = false;
  static constexpr int digits = int(sizeof(T) * 8) - int(is_signed), radix = 2;
  static constexpr T max() {
    return is_signed ? T((__make_unsigned(T))(-1) >> 1) : T(-1);
  }
  static constexpr T min() { return is_signed ? T(-max() - 1) : T(0); }
  static constexpr T lowest() { return min(); }
  static constexpr T infinity() { return T(0); }
  static constexpr T quiet_NaN() { return T(0); }
  static constexpr T epsilon() { return T(0); }
};
#define MH_LIMIT(T) template <> struct numeric_limits<T> : mh_integer_limits<T> {};
MH_LIMIT(char) MH_LIMIT(signed char) MH_LIMIT(unsigned char) MH_LIMIT(short)
MH_LIMIT(unsigned short) MH_LIMIT(int) MH_LIMIT(unsigned) MH_LIMIT(long) MH_LIMIT(unsigned long)
#undef MH_LIMIT
template <> struct numeric_limits<bool> {
  static constexpr bool is_specialized = true, is_integer = true, is_signed = false;
  static constexpr int digits = 1;
  static constexpr bool max() { return true; }
  static constexpr bool min() { return false; }
  static constexpr bool lowest() { return false; }
};
#define MH_LIMIT(T, MAX, MIN, EPS, DIGITS)                                                   \
  template <> struct numeric_limits<T> {                                                     \
    static constexpr bool is_specialized = true, is_integer = false, is_signed = true;       \
    static constexpr bool has_infinity = true, has_quiet_NaN = true, is_exact = false;       \
    static constexpr int digits = DIGITS, radix = 2;                                         \
    static constexpr T max() { return T(MAX); }                                              \
    static constexpr T min() { return T(MIN); }                                              \
    static constexpr T lowest() { return T(-MAX); }                                          \
    static constexpr T epsilon() { return T(EPS); }                                          \
    static constexpr T round_error() { return T(0.5f); }                                     \
    static constexpr T infinity() { return T(__builtin_inff()); }                            \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                         \
    static constexpr T signaling_NaN() { return T(__builtin_nanf("")); }                     \
    static constexpr T denorm_min() { return T(MIN * EPS); }                                 \
  };
MH_LIMIT(float, 0x1.fffffep127f, 0x1p-126f, 0x1p-23f, 24)
MH_LIMIT(half, 65504.0f, 0x1p-14f, 0x1p-10f, 11)
MH_LIMIT(bfloat, 0x1.fep127f, 0x1p-126f, 0x1p-7f, 8)
#undef MH_LIMIT

}  // namespace metal

template <class To, class From>
MH_INLINE constexpr To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  return __builtin_bit_cast(To, x);
}

// Macros, conditionals and the version macro.
// out: y int32 3 = 9 1 1
// grid: 1
// threadgroup: 1
// header
#define SQUARE(a) ((a) * (a))
#define PASTE(a, b) a##b
#if defined(__METAL_VERSION__) && __METAL_VERSION__ >= 310
#define HAS_BFLOAT 1
#else
#define HAS_BFLOAT 0
#endif
// body
int value1 = 1;
y[0] = SQUARE(1 + 2);
y[1] = PASTE(value, 1);
y[2] = HAS_BFLOAT;

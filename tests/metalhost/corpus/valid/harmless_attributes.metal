// Attributes and pragmas that say nothing about what is computed.
// out: y float32 32 = 3
// header
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-variable"
__attribute__((always_inline)) inline float one() { return 1; }
[[gnu::noinline]] float two() { return 2; }
static inline __attribute__((__unused__)) float three() { return one() + two(); }
#pragma clang diagnostic pop
// body
[[maybe_unused]] float unused = 0;
y[thread_position_in_grid.x] = three();

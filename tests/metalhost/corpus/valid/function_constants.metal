// Optional code and arguments by function constant; mx.fast.metal_kernel cannot set one.
// kernel: add_one
// constants: 0:bool=true 1:int=5 2:bool=false
// in: x float32 8 = 0..7
// out: y float32 8 = 5..12
// grid: 8
// threadgroup: 8
// header
constant bool use_step [[function_constant(0)]];
constant int step_size [[function_constant(1)]];
constant bool has_bias [[function_constant(2)]];
[[kernel]] void add_one(
    const device float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    const device float* bias [[buffer(2), function_constant(has_bias)]],
    uint i [[thread_position_in_grid]]) {
  float v = x[i];
  if (use_step) {
    v += float(step_size);
  }
  if (has_bias) {
    v += bias[i];
  }
  y[i] = v;
}
// body

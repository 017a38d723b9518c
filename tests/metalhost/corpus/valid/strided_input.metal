// The generated shape, stride and rank arguments of a sliced, transposed view.
// in: x float32 8x16[:,2:6]
// out: y float32 4x8 = -2.75 -0.75 1.25 3.25 -2.75 -0.75 1.25 3.25 1.875 3.875 -2.125 -0.125 1.875 3.875 -2.125 -0.125 -1.5 0.5 2.5 -3.5 -1.5 0.5 2.5 -3.5 3.125 -2.875 -0.875 1.125 3.125 -2.875 -0.875 1.125
// strided: true
// grid: 4 8
// threadgroup: 4 8
uint c = thread_position_in_grid.x;
uint r = thread_position_in_grid.y;
if (x_ndim == 2 && int(c) < x_shape[1] && int(r) < x_shape[0]) {
  y[c * 8 + r] = x[r * x_strides[0] + c * x_strides[1]];
}

const int at = thread_position_in_grid.x;
if (at < WIDTH * ROWS) {
  const int row = at / WIDTH, column = at % WIDTH;
  const float value = float(x[row * x_strides[0] + column * x_strides[1]]);
  out[at] = T(fma(value, float(scale[column]), float(shift[column])));
}

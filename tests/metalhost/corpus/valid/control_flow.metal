// switch, do, continue, break, the comma and the conditional operator.
// out: y int32 8 = 10 11 22 22 3 3 3 8
// grid: 8
// threadgroup: 8
int i = int(thread_position_in_grid.x);
int r = 0;
switch (i) {
  case 0:
  case 1:
    r = 10 + i;
    break;
  case 2:
  case 3: {
    r = 22;
    break;
  }
  default:
    do {
      r += 1;
      if (r == 8) {
        break;
      }
      if (i < 7) {
        continue;
      }
    } while (r < (i == 7 ? 100 : 3));
}
y[i] = r;

// Positions and sizes of a three-dimensional grid with ragged last threadgroups.
// out: y int32 60 = 0..59
// out: s int32 8 = 5 4 3 4 2 2 2 1
// grid: 5 4 3
// threadgroup: 4 2 2
uint3 p = thread_position_in_grid;
uint3 n = threads_per_grid;
uint flat = (p.z * n.y + p.y) * n.x + p.x;
uint3 q = threadgroup_position_in_grid * uint3(4, 2, 2) + thread_position_in_threadgroup;
y[flat] = all(p == q) ? int(flat) : -1;
if (flat == 0) {
  s[0] = int(n.x);
  s[1] = int(n.y);
  s[2] = int(n.z);
  s[3] = int(threads_per_threadgroup.x);
  s[4] = int(threadgroups_per_grid.x);
  s[5] = int(threadgroups_per_grid.y);
  s[6] = int(threadgroups_per_grid.z);
  s[7] = int(simdgroups_per_threadgroup);
}

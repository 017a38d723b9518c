// A threadgroup reads what its neighbour writes in the same launch.
// finds: race
// in: x float32 64
// out: y float32 64
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_device);
float other = y[63 - i];  // BUG
if (other > 1e30f) {
  y[i] = 0.0f;
}

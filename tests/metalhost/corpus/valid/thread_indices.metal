// Flat thread index, simdgroup index and lane of a two-dimensional threadgroup.
// out: y int32 96 = 0..95
// grid: 16 6
// threadgroup: 16 6
uint flat = thread_index_in_threadgroup;
uint2 p = thread_position_in_threadgroup.xy;
bool same = flat == p.y * 16 + p.x &&
    flat == simdgroup_index_in_threadgroup * threads_per_simdgroup + thread_index_in_simdgroup &&
    thread_index_in_quadgroup == (flat & 3);
y[flat] = same ? int(flat) : -1;

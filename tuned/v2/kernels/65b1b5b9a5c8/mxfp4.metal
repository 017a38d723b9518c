const int first = int(threadgroup_position_in_grid.x * SIMDGROUPS +
                      simdgroup_index_in_threadgroup) * OUTS;
if (first >= N) {
  return;
}
const Mxfp4<K> packing = {scales};
multiply_rows<T, ROWS, LENGTH, N, K, OUTS>(
    packing, x, x_strides[0], x_strides[1], x_strides[2], weight, out, first,
    int(thread_index_in_simdgroup));

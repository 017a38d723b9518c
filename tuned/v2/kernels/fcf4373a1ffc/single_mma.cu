// The only launch where the batch fills the GPU: one block takes 8 TILES query rows of one KV head
// over all keys.
constexpr int ROWS = GROUP * QLEN;
constexpr int HELD = ROWS < 8 * TILES ? ROWS : 8 * TILES;
constexpr int ROW_BLOCKS = (ROWS + 8 * TILES - 1) / (8 * TILES);
__shared__ float tops[WARPS * 8 * TILES];
__shared__ float sums[WARPS * 8 * TILES];
constexpr int MASK_ROWS = MASK > CAUSAL_MASK ? (HELD + 1) / 2 * 2 : 0;
constexpr int RING = Layout<BITS, QGROUP, D, DV, MASK_ROWS>::ring(STAGES);
constexpr int OUTS = HELD * DV * 4;
__shared__ __align__(128) unsigned char memory[WARPS * (RING > OUTS ? RING : OUTS)];
float* const outs = reinterpret_cast<float*>(memory);
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int kv_head = blockIdx.y / ROW_BLOCKS;
const int row0 = blockIdx.y % ROW_BLOCKS * 8 * TILES;
const int batch = blockIdx.z;
const int kv_len = keys_shape[2];

const Operand<T> k = {keys, keys_strides, key_scales, key_scales_strides, key_biases,
                      key_biases_strides};
const Operand<T> v = {values, values_strides, value_scales, value_scales_strides, value_biases,
                      value_biases_strides};
Accumulator<DV, TILES> state;
attend<BITS, QGROUP, D, DV, GROUP, QLEN, MASK, TILES, STAGES, MASK_ROWS>(
    state, memory + warp * RING, queries, queries_strides, k, v, mask, mask_strides, scale[0],
    kv_len, batch, kv_head, row0, warp, WARPS, lane);
auto write = [&](int row, int column, float total, float top, float sum) {
  row += row0;
  if (row < ROWS) {
    const int head = kv_head * GROUP + row / QLEN;
    out[((batch * int64_t(keys_shape[1]) + kv_head) * ROWS + row) * DV + column] =
        T(sum != 0.0f ? total / sum
                      : blind_row<BITS, QGROUP, MASK>(
                            v, batch, kv_head, column,
                            mask + batch * mask_strides[0] + head * mask_strides[1] +
                                row % QLEN * mask_strides[2],
                            mask_strides[3], kv_len));
  }
};
merge<DV, HELD, TILES, WARPS>(state, tops, sums, outs, warp, lane, write);

// The block's warps share K out, 1024 numbers (16 groups) each; tiles of 16 outputs roll through registers.
constexpr int PARTS = K / 1024;                              // warps of the block
constexpr int PIECES = K / 32;
constexpr int GROUPS = K / GROUP;
constexpr int TILES = (N + 15) / 16;
constexpr int HERE = (TILES + BLOCKS - 1) / BLOCKS;          // at most so many tiles a block
__shared__ uint4 staged[PARTS][128];
__shared__ float2 notes[PARTS][16];
__shared__ float shares[HERE][PARTS][16];
const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int g = lane / 4;
const int t = lane % 4;
const int64_t stride = x_strides[2];
const int turns = (TILES - int(blockIdx.x) + BLOCKS - 1) / BLOCKS;   // tiles of this block; none if not positive

// Pack (i, l): segment 2 * l + i of 64 bytes, two groups, of which this lane has a quarter.
uint4 low_next[8], high_next[8];
auto fetch = [&](int tile, int i, int l) {
  const int64_t low = min(tile * 16 + g, N - 1);
  const int64_t high = min(tile * 16 + g + 8, N - 1);
  const uint4* packs = reinterpret_cast<const uint4*>(weight) + warp * 32 + (2 * l + i) * 4 + t;
  low_next[4 * i + l] = load_stream(packs + low * PIECES);
  high_next[4 * i + l] = load_stream(packs + high * PIECES);
};
uint2 scales_next[2], biases_next[2];
auto fetch_factors = [&](int tile) {
  const int64_t low = min(tile * 16 + g, N - 1);
  const int64_t high = min(tile * 16 + g + 8, N - 1);
  const int at = warp * 16 + 4 * t;
  scales_next[0] = load_stream2(scales + low * GROUPS + at);
  scales_next[1] = load_stream2(scales + high * GROUPS + at);
  biases_next[0] = load_stream2(biases + low * GROUPS + at);
  biases_next[1] = load_stream2(biases + high * GROUPS + at);
};
if (turns > 0) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int l = 0; l < 4; ++l) fetch(blockIdx.x, i, l);
  }
  fetch_factors(blockIdx.x);
}

// x of the warp's part as half numbers, scaled by a power of two so that the largest of a group lies under 2^15:
// 8 bits of bfloat16 (11 of half) stay exact down to 2^-25 of it. Lane l makes piece l, 4 uint4.
uint32_t b[2][16];
float step[2][2], sum[2][2];
{
  const bool fast = stride == 1 && ((unsigned long long)(x) & 15) == 0;
  uint4 raw[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    raw[j] = load_raw(x + int64_t((warp * 32 + lane) * 32 + j * 8) * stride, stride, fast);
  }
  float v[32], most, all;
  open_piece<T>(raw, v, most, all);
  most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
  all += __shfl_xor_sync(0xffffffff, all, 1);
  const uint32_t exponent = __float_as_uint(most) >> 23;
  if (lane % 2 == 0) notes[warp][lane / 2] = make_float2(__uint_as_float((exponent - 14u) << 23), all);
  const float by = __uint_as_float((268u - exponent) << 23);
  const float by16 = by * 0.0625f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float* e = v + 8 * j;
    staged[warp][4 * lane + j] = make_uint4(two_halves(e[0] * by, e[4] * by), two_halves(e[1] * by16, e[5] * by16),
                                            two_halves(e[2] * by, e[6] * by), two_halves(e[3] * by16, e[7] * by16));
  }
  __syncwarp();
  // Column g of a product is half g % 2 of segment 2 * (g / 2) + i; it comes from lanes with t / 2 == g % 2.
  const bool active = t / 2 == g % 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int piece = (g / 2 * 2 + i) * 4 + t;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint4 word = make_uint4(0, 0, 0, 0);
      if (active) word = staged[warp][4 * piece + j];
      b[i][4 * j] = word.x;
      b[i][4 * j + 1] = word.y;
      b[i][4 * j + 2] = word.z;
      b[i][4 * j + 3] = word.w;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 note = notes[warp][4 * t + 2 * i + h];
      step[i][h] = note.x;
      sum[i][h] = note.y;
    }
  }
}

#pragma unroll 1
for (int turn = 0; turn < turns; ++turn) {
  const int following = int(blockIdx.x) + (turn + 1) * BLOCKS;
  const bool more = turn + 1 < turns;
  const uint2 low_scales = scales_next[0], high_scales = scales_next[1];
  const uint2 low_biases = biases_next[0], high_biases = biases_next[1];
  float total_low = 0.0f, total_high = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float c[4][4] = {};
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      mma_piece(c[l], low_next[4 * i + l], high_next[4 * i + l], b[i]);
      if (more) fetch(following, i, l);
    }
    // Lane t has its columns (2 * t, 2 * t + 1: two neighbouring groups) in product t of the four.
    float d[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) d[j] = (t == 0 ? c[0][j] : t == 1 ? c[1][j] : t == 2 ? c[2][j] : c[3][j]) * 16777216.0f;
    const uint32_t s_low = i == 0 ? low_scales.x : low_scales.y, s_high = i == 0 ? high_scales.x : high_scales.y;
    const uint32_t b_low = i == 0 ? low_biases.x : low_biases.y, b_high = i == 0 ? high_biases.x : high_biases.y;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total_low += pick<T>(s_low, h != 0) * (step[i][h] * d[h]) + pick<T>(b_low, h != 0) * sum[i][h];
      total_high += pick<T>(s_high, h != 0) * (step[i][h] * d[h + 2]) + pick<T>(b_high, h != 0) * sum[i][h];
    }
    if (i == 1 && more) fetch_factors(following);
  }
  total_low += __shfl_xor_sync(0xffffffff, total_low, 1);
  total_high += __shfl_xor_sync(0xffffffff, total_high, 1);
  total_low += __shfl_xor_sync(0xffffffff, total_low, 2);
  total_high += __shfl_xor_sync(0xffffffff, total_high, 2);
  if (t == 0) {
    shares[turn][warp][g] = total_low;
    shares[turn][warp][g + 8] = total_high;
  }
}
__syncthreads();
for (int i = threadIdx.x; i < HERE * 16; i += 32 * PARTS) {
  const int output = (int(blockIdx.x) + i / 16 * BLOCKS) * 16 + i % 16;
  if (output < N) {
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < PARTS; ++w) all += shares[i / 16][w][i % 16];
    out[output] = T(all);
  }
}

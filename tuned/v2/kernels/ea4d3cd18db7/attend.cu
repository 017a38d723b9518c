const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int split = blockIdx.x;
const int kv_head = blockIdx.y;
const int batch = blockIdx.z;
const int N = keys_shape[2];
const int heads = gridDim.y * GROUP;
const T* key = keys + int64_t(batch) * keys_strides[0] + int64_t(kv_head) * keys_strides[1];
const T* value = values + int64_t(batch) * values_strides[0] + int64_t(kv_head) * values_strides[1];
const T* query = queries + int64_t(batch) * queries_strides[0] + int64_t(kv_head) * GROUP * queries_strides[1];
const bool fast = keys_strides[3] == 1 && values_strides[3] == 1 && keys_strides[2] % 8 == 0 &&
    values_strides[2] % 8 == 0 && reinterpret_cast<unsigned long long>(key) % 16 == 0 &&
    reinterpret_cast<unsigned long long>(value) % 16 == 0;
// What one key is to one head of the group: true where the mask lets it be seen.
const bool* seen = reinterpret_cast<const bool*>(mask);
int64_t seen_key = 0, seen_head = 0;
if (MASKED) {
  seen_key = mask_strides[3];
  seen_head = mask_strides[1];
  seen += int64_t(batch) * mask_strides[0] + int64_t(kv_head) * GROUP * seen_head;
}

// A warp takes 16 keys at a time into tensor cores, straight from global memory: no shared memory.
// S = Q K^T: A is Q (heads are rows, 8 of the 16), B is K. Lane (r, t) = (lane / 4, lane % 4) reads
// 16 bytes of key r at 8 t + 32 j: which numbers of D meet in which step is free, if Q is read alike.
// O = P V: P comes from the accumulators as they are, and V is read as 16 bytes of the 4 keys whose
// weights the lane has; which columns of D are in which tile is free too.
static_assert(GROUP <= 8, "8 heads are a tile");
constexpr int J = D / 32;
constexpr int M = D / 64;
constexpr int STEP = 16;
__shared__ float totals[WARPS][GROUP][D];
__shared__ float tops[WARPS][GROUP];
__shared__ float sums[WARPS][GROUP];
const int per = ((N + SPLITS - 1) / SPLITS + WARPS * STEP - 1) / (WARPS * STEP) * (WARPS * STEP);
const int first = min(N, split * per);
const int last = min(N, first + per);
const int r = lane / 4;
const int t = lane % 4;
const float factor = scale[0] * 1.44269504f;
uint4 q[J];
#pragma unroll
for (int j = 0; j < J; ++j) {
  q[j] = make_uint4(0, 0, 0, 0);
  if (r < GROUP) {
    q[j] = att_load8<false>(query + r * queries_strides[1], 8 * t + 32 * j, queries_strides[3]);
  }
}
float total[M][8][2];
#pragma unroll
for (int m = 0; m < M; ++m) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    total[m][i][0] = 0.0f;
    total[m][i][1] = 0.0f;
  }
}
float top = -INFINITY;
float sum = 0.0f;
auto walk = [&](auto flag) {
  constexpr bool FAST = decltype(flag)::value;
  uint4 k[2][J];
  auto load_keys = [&](int base) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int n = min(base + 8 * h + r, N - 1);
#pragma unroll
      for (int j = 0; j < J; ++j) {
        k[h][j] = att_load8<FAST>(key + int64_t(n) * keys_strides[2], 8 * t + 32 * j, keys_strides[3]);
      }
    }
  };
  int base = first + warp * STEP;
  if (base < last) {
    load_keys(base);
  }
  for (; base < last; base += WARPS * STEP) {
    // Lane (r, t) has the scores of head r for keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
    int n[4];
    bool use[4];
    uint4 v[4][M];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      n[i] = base + 2 * t + i % 2 + 8 * (i / 2);
      use[i] = n[i] < last;
      const int at = min(n[i], N - 1);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        v[i][m] = att_load8<FAST>(value + int64_t(at) * values_strides[2], 8 * r + 64 * m, values_strides[3]);
      }
      if (MASKED && use[i] && r < GROUP) {
        use[i] = seen[r * seen_head + n[i] * seen_key];
      }
    }
    float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < J; ++j) {
        att_mma8(s[2 * h], s[2 * h + 1], q[j].x, q[j].y, k[h][j].x, k[h][j].y);
        att_mma8(s[2 * h], s[2 * h + 1], q[j].z, q[j].w, k[h][j].z, k[h][j].w);
      }
    }
    // The next keys are on their way while this step goes on.
    if (base + WARPS * STEP < last) {
      load_keys(base + WARPS * STEP);
    }
    float higher = top;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = use[i] ? s[i] * factor : -INFINITY;
      higher = fmaxf(higher, s[i]);
    }
    higher = fmaxf(higher, __shfl_xor_sync(0xffffffff, higher, 1));
    higher = fmaxf(higher, __shfl_xor_sync(0xffffffff, higher, 2));
    const float from = higher == -INFINITY ? 0.0f : higher;
    const float shrink = exp2f(top - from);
    top = higher;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = exp2f(s[i] - from);
      sum += s[i];
    }
    const unsigned int p0 = att_pack2(s[0], s[1]);
    const unsigned int p1 = att_pack2(s[2], s[3]);
    // Head r is row r of the accumulator too, so that a lane's `shrink` is its own.
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const unsigned int w[4][4] = {
          {v[0][m].x, v[0][m].y, v[0][m].z, v[0][m].w},
          {v[1][m].x, v[1][m].y, v[1][m].z, v[1][m].w},
          {v[2][m].x, v[2][m].y, v[2][m].z, v[2][m].w},
          {v[3][m].x, v[3][m].y, v[3][m].z, v[3][m].w}};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const unsigned int pick = i % 2 == 0 ? 0x5410 : 0x7632;
        total[m][i][0] *= shrink;
        total[m][i][1] *= shrink;
        att_mma8(total[m][i][0], total[m][i][1], p0, p1, __byte_perm(w[0][i / 2], w[1][i / 2], pick),
                 __byte_perm(w[2][i / 2], w[3][i / 2], pick));
      }
    }
  }
};
if (fast) {
  walk(AttFlag<true>());
} else {
  walk(AttFlag<false>());
}
sum += __shfl_xor_sync(0xffffffff, sum, 1);
sum += __shfl_xor_sync(0xffffffff, sum, 2);
if (r < GROUP) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // Column 2 t of tile (m, i) is the number 8 * (2 t) + i + 64 m of the row.
      totals[warp][r][64 * m + 16 * t + i] = total[m][i][0];
      totals[warp][r][64 * m + 16 * t + 8 + i] = total[m][i][1];
    }
  }
  if (t == 0) {
    tops[warp][r] = top;
    sums[warp][r] = sum;
  }
}

// The warps of the block are joined in shared memory: totals[warp][head][d], tops and sums beside.
__syncthreads();
for (int at = threadIdx.x; at < GROUP * D; at += WARPS * 32) {
  const int g = at / D;
  const int d = at % D;
  float most = -INFINITY;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    most = fmaxf(most, tops[w][g]);
  }
  float all = 0.0f;
  float number = 0.0f;
  if (most != -INFINITY) {
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float weight = exp2f(tops[w][g] - most);
      all += weight * sums[w][g];
      number += weight * totals[w][g][d];
    }
  }
  const int64_t slot = (int64_t(batch) * heads + kv_head * GROUP + g) * SPLITS + split;
  partial[slot * D + d] = number;
  if (d == 0) {
    stats[2 * slot] = most;
    stats[2 * slot + 1] = all;
  }
}

// A starter for prefill. A threadgroup takes ROWS * SIMDGROUPS query rows of one head, a simdgroup
// ROWS of them, and walks over tiles of 32 keys in threadgroup memory. Scores: one key a lane;
// values: every 32nd column a lane. Scores are in base 2; a key that a row must not see has HIDDEN.
constexpr float LOG2E = 1.44269504088896f;
constexpr float HIDDEN = -3.4e38f;
constexpr float FLOOR = -1.7e38f;  // below any real score, above HIDDEN
constexpr int TILE = 32;
constexpr int WIDTH = (D > DV ? D : DV) + 2;  // off the banks' period
constexpr int COLUMNS = (DV + 31) / 32;
constexpr int HELD = SIMDGROUPS * ROWS;
threadgroup T tile[TILE * WIDTH];
threadgroup T held[HELD * D];

const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int thread_index = simdgroup * 32 + lane;
const int head = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;
const int q_len = queries_shape[2];
const int kv_len = keys_shape[2];
const int first_row = threadgroup_position_in_grid.x * HELD;
const int row0 = first_row + simdgroup * ROWS;

const device T* q = queries + batch * queries_strides[0] + head * queries_strides[1];
const device T* k = keys + batch * keys_strides[0] + head / GROUP * keys_strides[1];
const device T* v = values + batch * values_strides[0] + head / GROUP * values_strides[1];
const auto m = mask + batch * mask_strides[0] + head * mask_strides[1];

for (int i = thread_index; i < HELD * D; i += 32 * SIMDGROUPS) {
  const int row = min(first_row + i / D, q_len - 1);
  held[i] = q[row * queries_strides[2] + i % D * queries_strides[3]];
}

float top[ROWS];
float sum[ROWS];
float acc[ROWS][COLUMNS];
#pragma unroll
for (int r = 0; r < ROWS; ++r) {
  top[r] = FLOOR;
  sum[r] = 0.0f;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    acc[r][c] = 0.0f;
  }
}

// The last key that any row of the threadgroup may see under a causal mask.
const int last_row = min(first_row + HELD, q_len) - 1;
const int end = MASK == 1 && SKIP ? min(kv_len, kv_len - q_len + last_row + 1) : kv_len;
for (int start = 0; start < end; start += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = thread_index; i < TILE * D; i += 32 * SIMDGROUPS) {
    const int key = min(start + i / D, kv_len - 1);
    tile[i / D * WIDTH + i % D] = k[key * keys_strides[2] + i % D * keys_strides[3]];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float score[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    score[r] = 0.0f;
  }
  for (int d = 0; d < D; ++d) {
    const float x = float(tile[lane * WIDTH + d]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      score[r] = fma(float(held[(simdgroup * ROWS + r) * D + d]), x, score[r]);
    }
  }
  const int key = start + lane;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = min(row0 + r, q_len - 1);
    score[r] *= scale[0] * LOG2E;
    bool seen = key < kv_len;
    if (MASK == 1) {
      seen = seen && key <= kv_len - q_len + row;
    } else if (MASK >= 2) {
      const float bias = seen ? float(m[row * mask_strides[2] + key * mask_strides[3]]) : 0.0f;
      if (MASK == 2) {
        seen = seen && bias > 0.0f;
      } else {
        seen = seen && bias != -INFINITY;
        score[r] = max(fma(bias, LOG2E, score[r]), HIDDEN);
      }
    }
    score[r] = seen ? score[r] : HIDDEN;
    const float next = max(top[r], simd_max(score[r]));
    const float fade = fast::exp2(top[r] - next);
    top[r] = next;
    score[r] = fast::exp2(score[r] - next);
    sum[r] = sum[r] * fade + simd_sum(score[r]);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      acc[r][c] *= fade;
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = thread_index; i < TILE * DV; i += 32 * SIMDGROUPS) {
    const int from = min(start + i / DV, kv_len - 1);
    tile[i / DV * WIDTH + i % DV] = v[from * values_strides[2] + i % DV * values_strides[3]];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int j = 0; j < TILE; ++j) {
    float x[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      const int column = lane + 32 * c;
      x[c] = column < DV ? float(tile[j * WIDTH + column]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float weight = simd_shuffle(score[r], j);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        acc[r][c] = fma(weight, x[c], acc[r][c]);
      }
    }
  }
}

#pragma unroll
for (int r = 0; r < ROWS; ++r) {
  const int row = row0 + r;
  if (row < q_len) {
    const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;
    const float all = max(top[r], own);
    const float fade = fast::exp2(top[r] - all);
    const float total = sum[r] * fade + (SINKS ? fast::exp2(own - all) : 0.0f);
    float count = 1.0f;
    float biggest = 0.0f;
    if (total == 0.0f) {
      // No key is seen: equal weights on the keys with the largest mask value, as SDPA has.
      biggest = -INFINITY;
      count = 0.0f;
      for (int j = 0; j < kv_len; ++j) {
        const float bias = MASK == 3 ? float(m[row * mask_strides[2] + j * mask_strides[3]]) : 0.0f;
        count = bias > biggest ? 1.0f : bias == biggest ? count + 1.0f : count;
        biggest = max(biggest, bias);
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      const int column = lane + 32 * c;
      if (column < DV) {
        float result = acc[r][c] * fade / total;
        if (total == 0.0f) {
          result = 0.0f;
          for (int j = 0; j < kv_len; ++j) {
            const float bias =
                MASK == 3 ? float(m[row * mask_strides[2] + j * mask_strides[3]]) : 0.0f;
            result += bias == biggest ? float(v[j * values_strides[2] + column * values_strides[3]]) : 0.0f;
          }
          result = biggest == -INFINITY ? NAN : result / count;
        }
        out[(((long)batch * queries_shape[1] + head) * q_len + row) * DV + column] = T(result);
      }
    }
  }
}

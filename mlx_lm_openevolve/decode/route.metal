// To which experts a token goes: the K largest of a softmax over E numbers, in the order in which a
// stable sort leaves them (the largest first where FIRST, else last), as indices, as scores, and as
// shares of the scores' sum. A threadgroup takes a token, a thread a number.
//
// As MLX does, a softmax is rounded to T before it is compared. Its numbers are not negative: the
// bits of a float stand in their order, NaN above all, so each thread finds a place of its own.
// twice: the indices, and then the same of the second half of 2 E experts.
threadgroup float parts[32];
threadgroup uint keys[E];
threadgroup float chosen[K];

const uint row = threadgroup_position_in_grid.y;
const uint i = thread_position_in_threadgroup.x;
const uint lane = i % 32;
const uint simdgroup = i / 32;
const float x = i < E ? float(logits[row * E + i]) : -INFINITY;

const float most = simd_max(x);
if (lane == 0) parts[simdgroup] = most;
threadgroup_barrier(mem_flags::mem_threadgroup);
const float largest = simd_max(lane < THREADS / 32 ? parts[lane] : -INFINITY);
threadgroup_barrier(mem_flags::mem_threadgroup);

const float power = i < E ? metal::precise::exp(x - largest) : 0.0f;
const float some = simd_sum(power);
if (lane == 0) parts[simdgroup] = some;
threadgroup_barrier(mem_flags::mem_threadgroup);
const float total = simd_sum(lane < THREADS / 32 ? parts[lane] : 0.0f);

const float score = float(T(power / total));
const uint key = as_type<uint>(score);
if (i < E) keys[i] = key;
threadgroup_barrier(mem_flags::mem_threadgroup);
uint larger = 0;
for (uint j = 0; j < E; ++j) {
  larger += keys[j] > key || (keys[j] == key && (FIRST ? j < i : j > i));
}
const uint place = FIRST ? larger : K - 1 - larger;
if (i < E && larger < K) {
  indices[row * K + place] = i;
  twice[2 * row * K + place] = i;
  twice[2 * row * K + K + place] = i + E;
  scores[row * K + place] = T(score);
  chosen[place] = score;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i < K) {
  float sum = 0.0f;
  for (uint j = 0; j < K; ++j) sum += chosen[j];
  shares[row * K + i] = T(chosen[i] / float(T(sum)));
}

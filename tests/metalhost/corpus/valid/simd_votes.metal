// simd_all, simd_any, ballots and the mask of the active lanes.
// out: y int32 5 = 0 1 1 4 32
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
bool all_low = simd_all(i < 16);
bool any_low = simd_any(i < 16);
simd_vote v = simd_ballot(i < 32);
uint64_t bits = uint64_t(simd_vote::vote_t(simd_ballot((i & 7) == 3)));
uint64_t active = uint64_t(simd_vote::vote_t(simd_active_threads_mask()));
if (i == 0) {
  y[0] = all_low;
  y[1] = any_low;
  y[2] = v.any();
  y[3] = popcount(uint(bits));
  y[4] = popcount(uint(active));
}

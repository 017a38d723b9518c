// A counter in threadgroup memory, ordered by barriers.
// out: y uint32 64 = 64
// grid: 64
// threadgroup: 64
threadgroup atomic_uint count;
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  atomic_store_explicit(&count, 0u, memory_order_relaxed);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = atomic_load_explicit(&count, memory_order_relaxed);

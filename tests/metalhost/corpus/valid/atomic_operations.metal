// Every fetch operation, exchange and compare-exchange.
// out: y int32 9 = 64 63 -63 -64 63 1 65535 5 0
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
int n = int(i);
device atomic_int* a = (device atomic_int*)y;
atomic_fetch_add_explicit(a, 1, memory_order_relaxed);
atomic_fetch_max_explicit(a + 1, n, memory_order_relaxed);
atomic_fetch_min_explicit(a + 2, -n, memory_order_relaxed);
atomic_fetch_sub_explicit(a + 3, 1, memory_order_relaxed);
atomic_fetch_or_explicit(a + 4, n, memory_order_relaxed);
if (i == 0) {
  int expected = 0;
  while (!atomic_compare_exchange_weak_explicit(
      a + 5, &expected, 1, memory_order_relaxed, memory_order_relaxed)) {
  }
  atomic_store_explicit(a + 6, 0x10ffff, memory_order_relaxed);
  atomic_fetch_and_explicit(a + 6, 0xffff, memory_order_relaxed);
  atomic_exchange_explicit(a + 7, 5, memory_order_relaxed);
  atomic_fetch_xor_explicit(a + 8, 6, memory_order_relaxed);
  int v = atomic_load_explicit(a + 8, memory_order_relaxed);
  atomic_fetch_xor_explicit(a + 8, v, memory_order_relaxed);
}

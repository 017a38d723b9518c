//// assembly_file
// Inline assembly could read a file at assembly time, and run anything at run time.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
__asm__(".incbin \"/etc/passwd\"");  // BUG
y[i] = x[i];

//// divergent_barrier_after_return
// Threads beyond the end return before the barrier that the others wait at.
// finds: divergent-barrier
// in: x float32 50
// out: y float32 50
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
if (i >= 50) {
  return;
}
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
y[i] = tile[49 - i];

//// divergent_barrier_helper
// One helper with a barrier, called from both branches.
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
// finds: divergent-barrier
// header
inline void wait() {
  threadgroup_barrier(mem_flags::mem_threadgroup); // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];
if (simdgroup_index_in_threadgroup == 0) wait();
else wait();

//// divergent_barrier_lane
// Half of each simdgroup waits at a threadgroup barrier.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
if (thread_index_in_simdgroup < 16) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

//// divergent_barrier_one_line
// Two barriers on one line, each for a part of the threads: neither is reached by all.
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
// finds: divergent-barrier
uint i = thread_position_in_grid.x;
y[i] = x[i];
if (i < 32) threadgroup_barrier(mem_flags::mem_none); else threadgroup_barrier(mem_flags::mem_none); // BUG

//// divergent_barrier_simdgroup
// Only the first simdgroup reaches the barrier.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
if (simdgroup_index_in_threadgroup == 0) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

//// divergent_barrier_trip_count
// A barrier in a loop that the simdgroups leave after different numbers of rounds.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
for (uint k = 0; k <= simdgroup_index_in_threadgroup; ++k) {
  acc += x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = acc;

//// divergent_barrier_two_sites
// Each branch has its own barrier: these are two barriers, not one.
// finds: divergent-barrier
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
float v = x[i];
if (simdgroup_index_in_threadgroup == 0) {
  v += 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
} else {
  v += 2.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = v;

//// divergent_early_return_simd
// Lanes beyond the row return before the reduction of the others.
// finds: divergent-collective
// in: x float32 40
// out: y float32 2
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i >= 40) {
  return;
}
float s = simd_sum(x[i]);  // BUG
if (thread_index_in_simdgroup == 0) {
  y[threadgroup_position_in_grid.x] = s;
}

//// divergent_matrix
// A matrix multiply inside a branch on the lane.
// finds: divergent-collective
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
if (thread_index_in_simdgroup < 24) {
  simdgroup_multiply(m, m, m);  // BUG
}
simdgroup_store(m, y, 8);  // BUG

//// divergent_quad
// A quad reduction that skips one thread of each quad.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];
if ((i & 3) != 3) {
  v = quad_sum(v);  // BUG
}
y[i] = v;

//// divergent_short_circuit
// The right side of && is evaluated by some lanes only.
// finds: divergent-collective
// in: x float32 32 = 0..31
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
bool hit = x[i] > 15.5f && simd_any(x[i] > 20.5f);  // BUG
y[i] = hit ? 1.0f : 0.0f;

//// divergent_shuffle_nested_helpers
// The same collective by two ways through helpers, one of them recursive.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
// header
inline float next(float v) {
  return simd_shuffle_xor(v, ushort(1)); // BUG
}
inline float twice(float v, int n) {
  return n == 0 ? v : next(twice(v, n - 1));
}
// body
uint i = thread_position_in_grid.x;
float v = x[i];
v = i % 2 ? twice(v, 2) : next(next(v));
y[i] = v;

//// divergent_simd_helper
// One helper called from both branches of a lane's condition: each half of the lanes is alone.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
// header
inline float total(float v) {
  return simd_sum(v); // BUG
}
// body
uint i = thread_position_in_grid.x;
float v = x[i];
if (i < 16) v = total(v);
else v = total(v);
y[i] = v;

//// divergent_simd_loop
// A shuffle in a loop whose trip count differs by lane.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];
for (uint k = 0; k < i / 8; ++k) {
  v += simd_shuffle_xor(v, 1);  // BUG
}
y[i] = v;

//// divergent_simd_one_line
// Two calls in the branches of a lane's condition are two calls, though they share a line.
// in: x float32 32
// out: y float32 32
// finds: divergent-collective
uint i = thread_position_in_grid.x;
float v = x[i];
if (i < 16) v = simd_sum(v); else v = simd_sum(v); // BUG
y[i] = v;

//// divergent_simd_sum
// A reduction that only the lanes inside the bounds take part in.
// finds: divergent-collective
// in: x float32 20
// out: y float32 1
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i < 20) {
  float s = simd_sum(x[i]);  // BUG
  if (i == 0) {
    y[0] = s;
  }
}

//// divergent_simd_two_sites
// Both branches reduce, each at its own call.
// finds: divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v;
if (i & 1) {
  v = simd_max(x[i]);  // BUG
} else {
  v = simd_sum(x[i]);  // BUG
}
y[i] = v;

//// divergent_simdgroup_barrier
// A simdgroup barrier that the upper lanes skip.
// finds: divergent-barrier divergent-collective
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_threadgroup.x;
if (i < 8) {
  simdgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = x[i];

//// embed_file
// #embed reads a file of the host at compile time.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
// header
constant uchar secret[] = {
#embed "/etc/passwd"  // BUG
};
// body
uint i = thread_position_in_grid.x;
y[i] = x[i] + float(secret[0]);

//// endless_loop
// The loop never ends because its counter wraps.
// finds: time-limit
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc = 0.0f;
for (uint j = 31; j >= 0; --j) {  // BUG
  acc += x[j & 31];  // BUG
}
y[i] = acc;

//// endless_loop_with_barrier
// Every thread goes round for ever and meets at a barrier each time.
// finds: time-limit
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float v = x[i];
while (v < 1e30f) {  // BUG
  tile[i] = v;  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
  v = min(v, tile[63 - i]);  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
}
y[i] = v;

//// endless_mutual_recursion
// Two functions call each other without end.
// finds: recursion stack-overflow
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// header
float pong(float v);
float ping(float v) {
  return v + pong(v * 0.5f);  // BUG
}
float pong(float v) {
  return v - ping(v * 0.25f);  // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = ping(x[i]);

//// endless_recursion
// A function calls itself without end.
// finds: recursion stack-overflow
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// header
float down(float v) {
  return v < 1e30f ? 1.0f + down(v * 0.5f) : v;  // BUG
}
// body
uint i = thread_position_in_grid.x;
y[i] = down(x[i]);

//// endless_spin_lock
// A lane spins on a lock that its own simdgroup holds and never gives back.
// finds: time-limit
// in: x float32 32
// out: y uint32 33
// init: 0
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* lock = (device atomic_uint*)(y + 32);
while (atomic_exchange_explicit(lock, 1u, memory_order_relaxed) != 0u) {  // BUG
}
y[i] = uint(x[i]);

//// escaped_body
// The body closes the kernel and opens a constructor that would run when the code is loaded.
// finds: sandbox compile
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
y[thread_position_in_grid.x] = x[thread_position_in_grid.x];
}
__attribute__((constructor)) void start() {  // BUG

//// host_builtin
// A compiler builtin that ends the process.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
if (x[i] < 1e30f) {
  __builtin_trap();  // BUG
}
y[i] = x[i];

//// host_function
// Declares and calls a function of the host's C library.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
// header
extern "C" int getpid();  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i] + float(getpid());  // BUG

//// include_absolute
// Includes a file of the host.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
#include "/etc/passwd"  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// include_by_macro
// The name of the file is hidden in a macro.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
#define SECRET "/etc/passwd"
#include SECRET  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// include_in_body
// Includes a file of the host from inside the body.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
uint i = thread_position_in_grid.x;
#include "/etc/hostname"  // BUG
y[i] = x[i];

//// include_relative
// Climbs out of the include root.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
#include <../../../../../../etc/passwd>  // BUG
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// include_spliced
// The directive is split by a line continuation and spelled with a digraph.
// finds: sandbox
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
// header
%: /* BUG */ inc\
lude "/etc/passwd"
// body
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// limit_private_array
// A private array of 64 MiB per thread.
// finds: stack-overflow memory-limit
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float a[16 * 1024 * 1024];  // BUG
for (uint j = 0; j < 16 * 1024 * 1024; ++j) {
  a[j] = x[i] + float(j);
}
y[i] = a[uint(x[i]) & 1023];

//// limit_threadgroup_memory
// 36 KiB of threadgroup memory, 32 are allowed.
// finds: threadgroup-memory
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float a[8192];
threadgroup float b[1024];  // BUG
uint i = thread_position_in_threadgroup.x;
a[i] = x[i];
b[i] = x[i];
y[i] = a[i] + b[i];

//// limit_threadgroup_memory_huge
// A hundred gigabytes of threadgroup memory.
// finds: threadgroup-memory
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: refused
threadgroup float a[25ul * 1024 * 1024 * 1024];  // BUG
uint i = thread_position_in_threadgroup.x;
a[i] = x[i];
y[i] = a[i];

//// limit_threads
// 1056 threads in a threadgroup, 1024 are allowed.
// finds: threadgroup-size
// in: x float32 1056
// out: y float32 1056
// grid: 1056
// threadgroup: 1056
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// limit_threads_product
// 32 x 8 x 8 threads: each side is small, the product is 2048.
// finds: threadgroup-size
// in: x float32 2048
// out: y float32 2048
// grid: 32 8 8
// threadgroup: 32 8 8
uint3 p = thread_position_in_grid;
uint i = (p.z * 8 + p.y) * 32 + p.x;
y[i] = x[i];

//// misaligned_device_load
// A float4 load that starts one float into the buffer.
// finds: misaligned
// in: x float32 64
// out: y float32 8
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)(x + 1);
y[i] = v[i].x;  // BUG

//// misaligned_device_store
// A half4 store to an odd element.
// finds: misaligned
// in: x float16 32
// out: y float16 64
// init: 0
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device half4* w = (device half4*)(y + 4 * i + 1);
w[0] = half4(x[i]);  // BUG

//// misaligned_threadgroup
// Rows of 33 floats are read as float4.
// finds: misaligned
// in: x float32 32
// out: y float32 4
// grid: 32
// threadgroup: 32
threadgroup float tile[4 * 33];
uint i = thread_position_in_threadgroup.x;
for (int r = 0; r < 4; ++r) {
  tile[r * 33 + i] = x[i];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i < 4) {
  float4 v = *(threadgroup float4*)(tile + i * 33);  // BUG
  y[i] = v.x + v.w;
}

//// misaligned_wide_integer
// A 64-bit read at a 4-byte boundary.
// finds: misaligned
// in: x uint32 64
// out: y uint32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device uint64_t* v = (const device uint64_t*)(x + 2 * i + 1);
y[i] = uint(*v >> 32);  // BUG

//// non_ascii_beside_comment
// What stands in a comment is free, a name behind it is not.
// finds: non-ascii
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
/* α */ float β = 2.0f;  // BUG
y[i] = 2.0f * x[i];

//// non_ascii_identifier
// A Greek variable name.
// finds: non-ascii
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
// apple: any
uint i = thread_position_in_grid.x;
float α = 2.0f;  // BUG
y[i] = 2.0f * x[i];

//// null_pointer
// A null device pointer is dereferenced.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
const device float* p = x[i] > 1e30f ? x : nullptr;
y[i] = p[0];  // BUG

//// oob_atomic
// A histogram bin one behind the last.
// finds: out-of-bounds
// in: x uint32 32 = 0..16 0..14
// out: bins uint32 16
// init: 0
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* b = (device atomic_uint*)bins;
atomic_fetch_add_explicit(b + x[i], 1u, memory_order_relaxed);  // BUG

//// oob_beyond_cache_length
// Reads the padding rows that a KV cache keeps behind its current length.
// finds: out-of-bounds
// in: k float32 2x32x8[:,0:20]
// out: y float32 16
// strided: true
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
uint head = i / 8;
uint d = i % 8;
float acc = 0.0f;
for (int n = 0; n < 32; ++n) {
  acc += k[head * k_strides[0] + n * k_strides[1] + d];  // BUG
}
y[i] = acc;

//// oob_constant_read
// Three scalars are passed in constant memory and the fourth is read.
// finds: out-of-bounds
// in: k float32 3
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc = 0.0f;
for (int j = 0; j < 4; ++j) {
  acc += k[j];  // BUG
}
y[i] = acc;

//// oob_device_before_start
// Reads the element before the first one: the left neighbour of element 0.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
int i = int(thread_position_in_grid.x);
float left = x[i - 1];  // BUG
y[i] = x[i] - left;

//// oob_device_read
// Reads one element past the end of the input.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i + 1];  // BUG

//// oob_device_write
// Writes one element past the end of the output.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (i == 0) {
  y[0] = 0.0f;
}
if (i + 1 < 64) {
  y[i + 1] = x[i];
} else {
  y[i + 1] = 0.0f;  // BUG
}

//// oob_int_overflow_index
// The flat index is computed in short and wraps to a negative offset.
// finds: out-of-bounds
// in: x float32 16
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
short stride = 30000;
short offset = short(stride * short(i < 8 ? 0 : 2));
y[i] = x[int(offset) + int(i)];  // BUG

//// oob_missing_guard
// The grid is rounded up to whole threadgroups and the guard is forgotten.
// finds: out-of-bounds
// in: x float32 50
// out: y float32 50
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v = x[i];  // BUG
if (i < 50) {
  y[i] = v;
}

//// oob_outside_view
// The rows of a cache slice are 16 apart but only 8 wide: column 8 belongs to somebody else.
// finds: out-of-bounds
// in: x float32 8x16[:,0:8]
// out: y float32 8
// strided: true
// grid: 8
// threadgroup: 8
uint r = thread_position_in_grid.x;
float acc = 0.0f;
for (int c = 0; c <= x_shape[1]; ++c) {
  acc += x[r * x_strides[0] + c];  // BUG
}
y[r] = acc;

//// oob_packed_vector
// Twelve-byte vectors: 21 of them fit in 64 floats, the 22nd does not.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 22
// grid: 22
// threadgroup: 22
uint i = thread_position_in_grid.x;
const device packed_float3* v = (const device packed_float3*)x;
float3 a = float3(v[i]);  // BUG
y[i] = a.x + a.y + a.z;

//// oob_private_read
// The index into a private array comes from the data and is one too large for some threads.
// finds: out-of-bounds
// in: idx int32 16 = 0..7 1..8
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float lut[8] = {0, 1, 2, 3, 4, 5, 6, 7};
y[i] = lut[idx[i]];  // BUG

//// oob_private_struct_field
// Running off an array inside a struct reaches the next field.
// finds: out-of-bounds
// in: n int32 1 = 3
// out: y float32 16
// grid: 16
// threadgroup: 16
// header
struct Pair {
  float key[2];
  float value[2];
};
// body
uint i = thread_position_in_grid.x;
Pair p = {{1.0f, 2.0f}, {3.0f, 4.0f}};
float s = 0.0f;
for (int j = 0; j < n[0]; ++j) {
  s += p.key[j];  // BUG
}
y[i] = s;

//// oob_private_write
// A loop fills five slots of a private array of four.
// finds: out-of-bounds
// in: n int32 1 = 5
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float acc[4];
for (int j = 0; j < n[0]; ++j) {
  acc[j] = x[i] * float(j);  // BUG
}
y[i] = acc[0] + acc[1] + acc[2] + acc[3];

//// oob_simdgroup_load
// An 8x8 load whose last row lies behind the end of a 7x8 matrix.
// finds: out-of-bounds
// in: a float32 7x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);  // BUG
simdgroup_store(m, y, 8);

//// oob_simdgroup_store
// The store uses a row stride of 16 on an output that is only 8 wide.
// finds: out-of-bounds
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
simdgroup_store(m, y, 16);  // BUG

//// oob_swapped_strides
// Row and column strides are swapped, so the last rows fall out of the matrix.
// finds: out-of-bounds
// in: x float32 4x16
// out: y float32 64
// grid: 16 4
// threadgroup: 16 4
uint c = thread_position_in_grid.x;
uint r = thread_position_in_grid.y;
y[r * 16 + c] = x[c * 16 + r];  // BUG

//// oob_threadgroup_neighbour
// Running off one threadgroup array lands in the next one, which is no excuse.
// finds: out-of-bounds
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float first[32];
threadgroup float second[32];
uint i = thread_position_in_threadgroup.x;
first[i] = x[i];
second[i] = 2.0f * x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float s = 0.0f;
for (uint j = i; j <= 32; ++j) {
  s += first[j];  // BUG
}
y[i] = s + second[i];

//// oob_threadgroup_pointer
// A helper is handed a row of a tile and walks one column too far in the last row.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 8
// grid: 8
// threadgroup: 8
// header
float row_sum(threadgroup const float* row, int n) {
  float s = 0.0f;
  for (int j = 0; j < n; ++j) {
    s += row[j];  // BUG
  }
  return s;
}
// body
threadgroup float tile[8][8];
uint i = thread_position_in_threadgroup.x;
for (int j = 0; j < 8; ++j) {
  tile[i][j] = x[i * 8 + j];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = row_sum(tile[i], 9);

//// oob_threadgroup_read
// Reads past the end of a threadgroup array.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i + 1];  // BUG

//// oob_threadgroup_write
// The tile has one slot per simdgroup and 32 of them, but it is indexed by thread.
// finds: out-of-bounds
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i / 2];

//// oob_vector_component
// A dynamic index of 4 into a float4.
// finds: out-of-bounds
// in: n int32 1 = 5
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float4 v = float4(1.0f, 2.0f, 3.0f, 4.0f);
float s = 0.0f;
for (int j = 0; j < n[0]; ++j) {
  s += v[j];  // BUG
}
y[i] = s;

//// oob_vector_load_tail
// The last float4 load straddles the end of a buffer of 62 floats.
// finds: out-of-bounds
// in: x float32 62
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)x;
float4 a = v[i];  // BUG
y[i] = a.x + a.y;

//// oob_vector_store_tail
// The last half4 store straddles the end of the output.
// finds: out-of-bounds
// in: x float16 64
// out: y float16 63
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device half4* v = (const device half4*)x;
device half4* w = (device half4*)y;
w[i] = v[i];  // BUG

//// race_atomic_and_plain
// Atomic adds and a plain read of the same counter are not ordered.
// finds: race
// out: y uint32 64
// grid: 64
// threadgroup: 64
threadgroup atomic_uint count;
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  atomic_store_explicit(&count, 0u, memory_order_relaxed);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);  // BUG
y[i] = *(threadgroup uint*)&count;  // BUG

//// race_barrier_flag_device
// The barrier fences device memory, the data is in threadgroup memory.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_device);
y[i] = tile[63 - i];  // BUG

//// race_barrier_flag_none
// mem_none makes the barrier an execution barrier only.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_none);
y[i] = tile[63 - i];  // BUG

//// race_barrier_flag_threadgroup
// The barrier fences threadgroup memory, the data goes through device memory.
// finds: race
// in: x float32 64
// out: t float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = t[63 - i];  // BUG

//// race_broadcast
// Thread 0 publishes the maximum and everybody reads it at once.
// finds: race
// also: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float top[1];
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  top[0] = x[0];  // BUG
}
y[i] = x[i] - top[0];  // BUG

//// race_device_no_barrier
// Threads of one threadgroup exchange through device memory without a barrier.
// finds: race
// also: uninitialised
// in: x float32 64
// out: t float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];  // BUG
y[i] = t[63 - i];  // BUG

//// race_double_buffer_parity
// A double buffer that writes the half which is being read.
// finds: race
// also: uninitialised
// in: x float32 4x64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[2][64];
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
tile[0][i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int k = 1; k < 4; ++k) {
  tile[(k + 1) & 1][i] = x[k * 64 + i];  // BUG
  acc += tile[(k - 1) & 1][63 - i];  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
y[i] = acc;

//// race_groups_accumulate
// Split partial sums are added to one element by all threadgroups without an atomic.
// finds: race
// in: x float32 128
// out: y float32 1
// init: 0
// grid: 128
// threadgroup: 32
float s = simd_sum(x[thread_position_in_grid.x]);
if (thread_index_in_simdgroup == 0) {
  y[0] += s;  // BUG
}

//// race_groups_read_write
// A threadgroup reads what its neighbour writes in the same launch.
// finds: race
// in: x float32 64
// out: y float32 64
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_device);
float other = y[63 - i];  // BUG
if (other > 1e30f) {
  y[i] = 0.0f;
}

//// race_groups_write_write
// Both threadgroups write the same output elements.
// finds: race
// in: x float32 64
// out: y float32 32
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[thread_position_in_threadgroup.x] = x[i];  // BUG

//// race_loop_back_edge
// The barrier after the store is there, the one before the next store is not.
// finds: race
// in: x float32 4x64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
for (int k = 0; k < 4; ++k) {
  tile[i] = x[k * 64 + i];  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);
  acc += tile[63 - i];  // BUG
}
y[i] = acc;

//// race_no_barrier
// Threads of different simdgroups exchange values with no barrier at all.
// finds: race
// also: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
y[i] = tile[63 - i];  // BUG

//// race_overlapping_vectors
// Neighbouring threads store float2 values that overlap by one float.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[66];
uint i = thread_position_in_threadgroup.x;
threadgroup packed_float2* at = (threadgroup packed_float2*)(tile + i);
at[0] = packed_float2(x[i], 0.0f);  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i];

//// race_read_after_barrier_of_none
// Nor does a barrier of mem_none.
// finds: race
// in: x float32 64 = 0..63
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_none);
y[i] = tile[63 - i];  // BUG

//// race_read_after_vote
// A collective fences no memory: what is stored before it may not be seen behind it.
// finds: race
// in: x float32 32 = 0..31
// out: y float32 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
if (simd_any(x[i] >= 0)) {
  y[i] = tile[31 - i];  // BUG
}

//// race_read_modify_write
// A counter in threadgroup memory is incremented without an atomic.
// finds: race
// out: y uint32 64
// grid: 64
// threadgroup: 64
threadgroup uint count[1];
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  count[0] = 0;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
count[0] += 1;  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = count[0];

//// race_reused_scratch
// The scratch of one simdgroup reduction is reused for the next without a barrier between.
// finds: race
// also: benign
// in: x float32 1024
// out: y float32 2
// grid: 1024
// threadgroup: 1024
threadgroup float part[32];
uint i = thread_position_in_threadgroup.x;
uint sg = simdgroup_index_in_threadgroup;
uint lane = thread_index_in_simdgroup;
float m = simd_max(x[i]);
if (lane == 0) {
  part[sg] = m;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
m = simd_max(part[lane]);  // BUG
float s = simd_sum(x[i]);
if (lane == 0) {
  part[sg] = s;  // BUG
}
threadgroup_barrier(mem_flags::mem_threadgroup);
s = simd_sum(part[lane]);
if (i == 0) {
  y[0] = m;
  y[1] = s;
}

//// race_same_value_but_one
// All threads but the last store one value.
// finds: race
// also: benign
// in: x float32 32 = 0..31
// out: y float32 32
threadgroup float start;
uint i = thread_position_in_threadgroup.x;
start = i < 31 ? 5.0f : 6.0f;  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = start + x[i];

//// race_same_value_in_copies
// Copies of a struct that differ in their last bytes.
// finds: race
// also: benign
// in: x float32 32 = 0..31
// out: y float32 32
// header
struct Nine { float a, b, c, d, e, f, g, h, i; };
// body
threadgroup Nine all;
uint i = thread_position_in_threadgroup.x;
Nine own = {};
own.i = x[i];
all = own;  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = all.i;

//// race_same_value_is_read
// One value from all threads, read without a barrier by those that have stored nothing.
// finds: race
// also: benign
// in: x float32 32 = 0..31
// out: y float32 32
threadgroup float start;
uint i = thread_position_in_threadgroup.x;
start = 0;  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i < 16) start = x[7];  // BUG
y[i] = start;  // BUG

//// race_same_value_then_another
// Two threads store one value, and one of them another behind it.
// finds: race
// also: benign
// in: x float32 32 = 0..31
// out: y float32 32
threadgroup float start;
uint i = thread_position_in_threadgroup.x;
if (i < 2) {
  start = x[9];  // BUG
  if (i == 1) start = x[3];  // BUG
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = start;

//// race_simdgroup_barrier_only
// simdgroup_barrier does not order threads of different simdgroups.
// finds: race
// also: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
simdgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i ^ 32];  // BUG

//// race_simdgroup_store
// One simdgroup stores a matrix, the other loads it without waiting.
// finds: race
// also: uninitialised
// in: a float32 8x8
// out: y float32 8x8
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
simdgroup_float8x8 m;
if (simdgroup_index_in_threadgroup == 0) {
  simdgroup_load(m, a, 8);
  simdgroup_store(m, tile, 8);  // BUG
} else {
  simdgroup_load(m, tile, 8);  // BUG
  simdgroup_store(m, y, 8);
}

//// race_tree_reduction
// An in-place tree reduction with no barrier between its levels.
// finds: race
// in: x float32 128
// out: y float32 1
// grid: 128
// threadgroup: 128
threadgroup float s[128];
uint i = thread_position_in_threadgroup.x;
s[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint h = 64; h > 0; h /= 2) {
  if (i < h) {
    s[i] += s[i + h];  // BUG
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i == 0) {
  y[0] = s[0];
}

//// race_vote_of_another_simdgroup
// A collective orders the stores of its own simdgroup alone.
// finds: race
// in: x float32 64 = 0..63
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float next = tile[63 - i];  // BUG
if (simd_any(next >= 0)) {
  tile[i] = next;  // BUG
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i];

//// race_within_simdgroup
// Lanes of one simdgroup exchange through threadgroup memory: that needs simdgroup_barrier.
// finds: race
// also: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];  // BUG
y[i] = tile[i ^ 1];  // BUG

//// race_write_write
// Every thread writes its own value to one slot.
// finds: race
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 64
threadgroup float last[1];
uint i = thread_position_in_threadgroup.x;
last[0] = x[i];  // BUG
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = last[0];

//// uninit_in_condition
// A flag that nobody has stored decides.
// finds: uninitialised
// in: x float32 32 = 0..31
// out: y float32 32
threadgroup int flag;
uint i = thread_position_in_threadgroup.x;
y[i] = flag > 0 ? x[i] : 0.0f;  // BUG

//// uninit_in_maximum
// The same in a maximum of large numbers.
// finds: uninitialised
// in: x float32 32 = 1e30
// out: y float32 32
threadgroup float tile[33];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = max(tile[i], tile[i + 1]);  // BUG

//// uninit_in_minimum
// A value that nobody has stored takes part in a minimum of negative numbers.
// finds: uninitialised
// in: x float32 32 = -1
// out: y float32 32
threadgroup float tile[33];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = min(tile[i], tile[i + 1]);  // BUG

//// uninit_local
// The accumulator of a dot product is never set to zero.
// finds: uninitialised
// in: x float32 64
// out: y float32 16
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
float acc;
for (int j = 0; j < 4; ++j) {
  acc += x[i * 4 + j];  // BUG
}
y[i] = acc;  // BUG

//// uninit_local_array
// A private array of eight of which seven are written.
// finds: uninitialised
// in: n int32 1 = 7
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v[8];
for (int j = 0; j < n[0]; ++j) {
  v[j] = x[i] + float(j);
}
float s = 0.0f;
for (int j = 0; j < 8; ++j) {
  s += v[j];  // BUG
}
y[i] = s;  // BUG

//// uninit_local_branch
// A value is set in one branch only.
// finds: uninitialised
// in: x float32 32 = -16..15
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float v;
if (x[i] > 0.0f) {  // BUG
  v = x[i];
}
y[i] = v * 2.0f;  // BUG

//// uninit_local_index
// An uninitialised local is used as an index.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
uint j;
if (x[i] > 1e30f) {  // BUG
  j = 1;
}
y[i] = x[j & 31];  // BUG

//// uninit_local_vector
// Only three components of a vector are set before all four are used.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
float4 v;
v.xyz = float3(x[i]);
y[i] = dot(v, float4(1.0f));  // BUG

//// uninit_matrix_accumulator
// The accumulator of a matrix multiply is never cleared.
// finds: uninitialised
// in: a float32 8x8
// out: y float32 8x8
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_float8x8 acc;
simdgroup_load(m, a, 8);
simdgroup_multiply_accumulate(acc, m, m, acc);  // BUG
simdgroup_store(acc, y, 8);  // BUG

//// uninit_output_read
// The output is accumulated into without having been written: it holds garbage on a GPU.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] += x[i];  // BUG

//// uninit_threadgroup
// Threadgroup memory is read before anything is written to it.
// finds: uninitialised
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
y[i] = x[i] + tile[i];  // BUG

//// uninit_threadgroup_next_group
// The second threadgroup relies on what the first left in threadgroup memory.
// finds: uninitialised
// in: x float32 64
// out: y float32 64
// grid: 64
// threadgroup: 32
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
if (threadgroup_position_in_grid.x == 0) {
  tile[i] = x[i];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[thread_position_in_grid.x] = tile[31 - i];  // BUG

//// uninit_threadgroup_partial
// Four simdgroups fill four slots and all 32 are reduced.
// finds: uninitialised
// in: x float32 128
// out: y float32 1
// grid: 128
// threadgroup: 128
threadgroup float part[32];
uint i = thread_position_in_threadgroup.x;
float s = simd_sum(x[i]);
if (thread_index_in_simdgroup == 0) {
  part[simdgroup_index_in_threadgroup] = s;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
s = simd_sum(part[thread_index_in_simdgroup]);  // BUG
if (i == 0) {
  y[0] = s;
}

//// unwritten_output
// The kernel never writes its output.
// finds: unwritten
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (x[i] > 1e30f) {
  y[i] = x[i];
}

//// unwritten_output_stride
// Every second element is left out.
// finds: unwritten
// in: x float32 64
// out: y float32 64
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[2 * i] = x[2 * i] + x[2 * i + 1];

//// unwritten_output_tail
// The grid is one threadgroup short of the output.
// finds: unwritten
// in: x float32 96
// out: y float32 96
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i];

//// wild_pointer_far_offset
// A 64-bit offset that leaves the address space of the launch.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
int64_t far = int64_t(1) << 44;
y[i] = x[far + i];  // BUG

//// wild_pointer_read
// An address made up from an integer.
// finds: out-of-bounds fault
// in: x float32 32
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
const device float* p = (const device float*)(0x123456780ul + i * 4);
y[i] = x[i] + *p;  // BUG

//// wild_pointer_write
// A pointer read from a buffer is written through.
// finds: out-of-bounds fault
// in: x uint64 32 = 4096
// out: y float32 32
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
device float* p = (device float*)x[i];
*p = 1.0f;  // BUG
y[i] = 0.0f;

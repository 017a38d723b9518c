// Structs copied between device, threadgroup and thread memory, with float3 padding.
// in: x float32 64 = 0..63
// out: y float32 16 = 56 60 48 52 40 44 32 36 24 28 16 20 8 12 0 4
// grid: 8
// threadgroup: 8
// header
struct Item {
  float3 p;
  float w;
};
// body
threadgroup Item tile[8];
uint i = thread_position_in_threadgroup.x;
const device Item* in = (const device Item*)x;
static_assert(sizeof(Item) == 32, "float3 takes 16 bytes");
Item one = in[i];
tile[i] = one;
threadgroup_barrier(mem_flags::mem_threadgroup);
Item other = tile[7 - i];
y[2 * i] = other.p.x;
y[2 * i + 1] = other.w;

// Pointers and references to each address space as parameters.
// in: x float32 8 = 0..7
// in: k float32 1 = 2
// out: y float32 8 = 0 3 6 9 12 15 18 21
// grid: 8
// threadgroup: 8
// header
void scale(thread float& v, constant const float& k) { v *= k; }
float first(const device float* p) { return *p; }
void put(threadgroup float* p, float v) { *p = v; }
float get(const threadgroup float& v) { return v; }
// body
threadgroup float tile[8];
uint i = thread_position_in_threadgroup.x;
float v = first(x + i);
scale(v, k[0]);
put(&tile[i], v);
thread float* p = &v;
*p = get(tile[i]);
const thread float* q = p;
y[i] = *q + x[i];

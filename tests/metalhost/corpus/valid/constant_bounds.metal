// An integer in the constant address space is a constant expression: bounds, template arguments.
// out: y float32 8 = 0 10 20 30 40 50 60 70
// grid: 8
// threadgroup: 8
// header
constant int N = 8;
constant uint WIDTH = 4u;
template <int K> float times(float v) { return K * v; }
// body
threadgroup float shared[N][WIDTH];
float own[N / 2];
uint i = thread_position_in_threadgroup.x;
own[i % WIDTH] = float(i);
shared[i][1] = times<N + 2>(own[i % WIDTH]);
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = shared[i][1];

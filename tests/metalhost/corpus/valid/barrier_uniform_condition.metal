// A barrier in a branch and in a loop that all threads take alike.
// in: n int32 1 = 3
// in: x float32 64 = 0..63
// out: y float32 64 = 0 4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64 68 72 76 80 84 88 92 96 100 104 108 112 116 120 124 128 132 136 140 144 148 152 156 160 164 168 172 176 180 184 188 192 196 200 204 208 212 216 220 224 228 232 236 240 244 248 252
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float acc = x[i];
for (int k = 0; k < n[0]; ++k) {
  if (n[0] > 1) {
    tile[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  acc += tile[i];
}
y[i] = acc;

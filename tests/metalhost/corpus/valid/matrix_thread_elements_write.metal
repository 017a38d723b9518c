// Elements written through a vector reference of the lane's fragment, as MLX does.
// in: a float32 8x8 = 0..63
// out: y float32 8x8 = 0 4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64 68 72 76 80 84 88 92 96 100 104 108 112 116 120 124 128 132 136 140 144 148 152 156 160 164 168 172 176 180 184 188 192 196 200 204 208 212 216 220 224 228 232 236 240 244 248 252
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
reinterpret_cast<thread float2&>(m.thread_elements()) *= 4.0f;
simdgroup_store(m, y, 8);

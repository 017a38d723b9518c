// Each lane holds two neighbouring elements of a row, in the layout that MLX relies on.
// in: a float32 8x8 = 0..63
// out: y float32 8x8 = 1..64
// grid: 32
// threadgroup: 32
uint lane = thread_index_in_simdgroup;
uint qid = lane / 4;
uint row = (qid & 4) + (lane / 2) % 4;
uint col = (qid & 2) * 2 + (lane % 2) * 2;
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
float2 e = float2(m.thread_elements()[0], m.thread_elements()[1]);
y[row * 8 + col] = e.x + 1.0f;
y[row * 8 + col + 1] = e.y + 1.0f;

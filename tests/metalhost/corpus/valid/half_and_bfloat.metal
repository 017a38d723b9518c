// half and bfloat convert into each other when a cast says so, in every spelling.
// in: x float32 1 = 1.5
// out: y float32 8 = 1.5 1.5 1.5 1.5 1.5 1.5 3 1.5
// grid: 1
// threadgroup: 1
// header
inline half as_half(bfloat b) { return (half)b; }
inline bfloat as_bfloat(half h) { return bfloat(h); }
// body
half h = half(x[0]);
bfloat b = bfloat(h);
y[0] = float(b);
y[1] = float((bfloat)h);
y[2] = float(static_cast<bfloat16_t>(h));
y[3] = float(half(b));
y[4] = float((float16_t)b);
y[5] = float(static_cast<half>(b));
half2 v = half2(bfloat2(b));
y[6] = float(v.x + v.y);
y[7] = float(as_half(as_bfloat(h)));

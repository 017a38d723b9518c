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

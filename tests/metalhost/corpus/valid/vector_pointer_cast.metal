// Whole float4 loads and stores through cast pointers.
// in: x float32 64 = 0..63
// out: y float32 64 = 1 3 5 7 9 11 13 15 17 19 21 23 25 27 29 31 33 35 37 39 41 43 45 47 49 51 53 55 57 59 61 63 65 67 69 71 73 75 77 79 81 83 85 87 89 91 93 95 97 99 101 103 105 107 109 111 113 115 117 119 121 123 125 127
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
w[i] = v[i] * 2.0f + 1.0f;

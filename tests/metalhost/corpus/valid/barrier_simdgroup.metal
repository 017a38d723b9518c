// simdgroup_barrier orders the lanes of one simdgroup, each with its own slice.
// in: x float32 128 = 0..127
// out: y float32 128 = 1 0 3 2 5 4 7 6 9 8 11 10 13 12 15 14 17 16 19 18 21 20 23 22 25 24 27 26 29 28 31 30 33 32 35 34 37 36 39 38 41 40 43 42 45 44 47 46 49 48 51 50 53 52 55 54 57 56 59 58 61 60 63 62 65 64 67 66 69 68 71 70 73 72 75 74 77 76 79 78 81 80 83 82 85 84 87 86 89 88 91 90 93 92 95 94 97 96 99 98 101 100 103 102 105 104 107 106 109 108 111 110 113 112 115 114 117 116 119 118 121 120 123 122 125 124 127 126
// grid: 128
// threadgroup: 128
threadgroup float tile[128];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
simdgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i ^ 1];

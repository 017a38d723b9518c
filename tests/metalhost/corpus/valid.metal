//// address_spaces
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

//// array_parameters_of_kernels
// A kernel's parameter in brackets is a pointer, and takes the next free index without an attribute.
// kernel: spread
// in: x float32 8 = 0..7
// in: strides int32 3 = 2 4 1
// in: k float32 4 = 1 2 3 4
// out: y float32 8 = 3 4 6 7 11 12 14 15
// grid: 8
// threadgroup: 8
// header
constant constexpr int rank = 3;
[[kernel]] void spread(
    const device float x[8],
    constant const int strides[rank],
    constant float k[4] [[buffer(2)]],
    device float y[],
    uint i [[thread_position_in_threadgroup]]) {
  const int at = int(i) / strides[0];
  y[i] = x[i] + k[at % strides[1]] + k[1] * float(strides[2] + (int(i) >= strides[1]) * strides[2]);
}

//// atomic_device_add
// A histogram in device memory.
// in: x uint32 64 = 0..7
// out: bins uint32 8 = 8
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_uint* b = (device atomic_uint*)bins;
atomic_fetch_add_explicit(b + x[i], 1u, memory_order_relaxed);

//// atomic_float
// Float addition in device memory.
// in: x float32 64 = 1..64
// out: y float32 1 = 2080
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
device atomic_float* a = (device atomic_float*)y;
atomic_fetch_add_explicit(a, x[i], memory_order_relaxed);

//// atomic_operations
// Every fetch operation, exchange and compare-exchange.
// out: y int32 9 = 64 63 -63 -64 63 1 65535 5 0
// init: 0
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
int n = int(i);
device atomic_int* a = (device atomic_int*)y;
atomic_fetch_add_explicit(a, 1, memory_order_relaxed);
atomic_fetch_max_explicit(a + 1, n, memory_order_relaxed);
atomic_fetch_min_explicit(a + 2, -n, memory_order_relaxed);
atomic_fetch_sub_explicit(a + 3, 1, memory_order_relaxed);
atomic_fetch_or_explicit(a + 4, n, memory_order_relaxed);
if (i == 0) {
  int expected = 0;
  while (!atomic_compare_exchange_weak_explicit(
      a + 5, &expected, 1, memory_order_relaxed, memory_order_relaxed)) {
  }
  atomic_store_explicit(a + 6, 0x10ffff, memory_order_relaxed);
  atomic_fetch_and_explicit(a + 6, 0xffff, memory_order_relaxed);
  atomic_exchange_explicit(a + 7, 5, memory_order_relaxed);
  atomic_fetch_xor_explicit(a + 8, 6, memory_order_relaxed);
  int v = atomic_load_explicit(a + 8, memory_order_relaxed);
  atomic_fetch_xor_explicit(a + 8, v, memory_order_relaxed);
}

//// atomic_threadgroup
// A counter in threadgroup memory, ordered by barriers.
// out: y uint32 64 = 64
// grid: 64
// threadgroup: 64
threadgroup atomic_uint count;
uint i = thread_position_in_threadgroup.x;
if (i == 0) {
  atomic_store_explicit(&count, 0u, memory_order_relaxed);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = atomic_load_explicit(&count, memory_order_relaxed);

//// attribute_spellings
// Attributes that change no value, in every place where they may stand.
// in: x float32 32 = 0..31
// out: y float32 32 = 1..32
// header
[[max_total_threads_per_threadgroup(64)]] kernel void before(device float* y [[buffer(0)]]) { y[0] = 1; }
[[kernel]] [[max_total_threads_per_threadgroup(64)]] void apart(device float* y [[buffer(0)]]) { y[0] = 1; }
[[kernel, max_total_threads_per_threadgroup(8 * 8)]] void within(device float* y [[buffer(0)]]) { y[0] = 1; }
kernel void __attribute__((max_total_threads_per_threadgroup(64))) middle(device float* y [[buffer(0)]]) { y[0] = 1; }
kernel void after(device float* y [[buffer(0)]]) __attribute__((max_total_threads_per_threadgroup(64)))
{ y[0] = 1; }
struct __attribute__((packed)) Tight { char a; float b; };
struct alignas(16) Wide { float a; };
[[nodiscard]] inline float one() { return 1; }
inline float same(float v) __attribute__((always_inline, const));
inline float same(float v) { return v; }
[[gnu::always_inline, gnu::const]] inline float also(float v) { return v; }
// body
threadgroup float tile[32] __attribute__((aligned(16)));
alignas(16) threadgroup float other[4], more[4] __attribute__((aligned(16)));
float own[4] __attribute__((aligned(16))) = {1, 2, 3, 4};
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
if (i == 0) [[likely]] { other[0] = more[0] = 0; }
[[maybe_unused]] Tight t;
y[i] = same(tile[i]) + also(one()) + (sizeof(Tight) - 5) + (sizeof(Wide) - 16) * own[0];

//// barrier_combined_flags
// Both kinds of memory are ordered by one barrier.
// in: x float32 64 = 0..63
// out: t float32 64 = 0..63
// out: y float32 64 = 126 124 122 120 118 116 114 112 110 108 106 104 102 100 98 96 94 92 90 88 86 84 82 80 78 76 74 72 70 68 66 64 62 60 58 56 54 52 50 48 46 44 42 40 38 36 34 32 30 28 26 24 22 20 18 16 14 12 10 8 6 4 2 0
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
y[i] = t[63 - i] + tile[63 - i];

//// barrier_device_memory
// A threadgroup exchanges values through device memory behind a mem_device barrier.
// in: x float32 64 = 0..63
// out: t float32 64 = 0..63
// out: y float32 64 = 63..0
// grid: 64
// threadgroup: 64
uint i = thread_position_in_threadgroup.x;
t[i] = x[i];
threadgroup_barrier(mem_flags::mem_device);
y[i] = t[63 - i];

//// barrier_double_buffer
// A double buffer needs one barrier a round when the halves alternate.
// in: x float32 4x64 = 0..255
// out: y float32 64 = 636 632 628 624 620 616 612 608 604 600 596 592 588 584 580 576 572 568 564 560 556 552 548 544 540 536 532 528 524 520 516 512 508 504 500 496 492 488 484 480 476 472 468 464 460 456 452 448 444 440 436 432 428 424 420 416 412 408 404 400 396 392 388 384
// grid: 64
// threadgroup: 64
threadgroup float tile[2][64];
uint i = thread_position_in_threadgroup.x;
float acc = 0.0f;
for (int k = 0; k < 4; ++k) {
  tile[k & 1][i] = x[k * 64 + i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  acc += tile[k & 1][63 - i];
}
y[i] = acc;

//// barrier_reduction
// A tree reduction in threadgroup memory with a barrier on each level.
// in: x float32 256 = 1..256
// out: y float32 2 = 8256 24640
// grid: 256
// threadgroup: 128
threadgroup float s[128];
uint i = thread_position_in_threadgroup.x;
s[i] = x[thread_position_in_grid.x];
for (uint h = 64; h > 0; h /= 2) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i < h) {
    s[i] += s[i + h];
  }
}
if (i == 0) {
  y[threadgroup_position_in_grid.x] = s[0];
}

//// barrier_simdgroup
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

//// barrier_transpose
// A 32x32 tile is transposed through padded threadgroup memory.
// in: x float32 32x32 = 0..1023
// out: y float32 32x32 = 0 32 64 96 128 160 192 224 256 288 320 352 384 416 448 480 512 544 576 608 640 672 704 736 768 800 832 864 896 928 960 992 1 33 65 97 129 161 193 225 257 289 321 353 385 417 449 481 513 545 577 609 641 673 705 737 769 801 833 865 897 929 961 993 2 34 66 98 130 162 194 226 258 290 322 354 386 418 450 482 514 546 578 610 642 674 706 738 770 802 834 866 898 930 962 994 3 35 67 99 131 163 195 227 259 291 323 355 387 419 451 483 515 547 579 611 643 675 707 739 771 803 835 867 899 931 963 995 4 36 68 100 132 164 196 228 260 292 324 356 388 420 452 484 516 548 580 612 644 676 708 740 772 804 836 868 900 932 964 996 5 37 69 101 133 165 197 229 261 293 325 357 389 421 453 485 517 549 581 613 645 677 709 741 773 805 837 869 901 933 965 997 6 38 70 102 134 166 198 230 262 294 326 358 390 422 454 486 518 550 582 614 646 678 710 742 774 806 838 870 902 934 966 998 7 39 71 103 135 167 199 231 263 295 327 359 391 423 455 487 519 551 583 615 647 679 711 743 775 807 839 871 903 935 967 999 8 40 72 104 136 168 200 232 264 296 328 360 392 424 456 488 520 552 584 616 648 680 712 744 776 808 840 872 904 936 968 1000 9 41 73 105 137 169 201 233 265 297 329 361 393 425 457 489 521 553 585 617 649 681 713 745 777 809 841 873 905 937 969 1001 10 42 74 106 138 170 202 234 266 298 330 362 394 426 458 490 522 554 586 618 650 682 714 746 778 810 842 874 906 938 970 1002 11 43 75 107 139 171 203 235 267 299 331 363 395 427 459 491 523 555 587 619 651 683 715 747 779 811 843 875 907 939 971 1003 12 44 76 108 140 172 204 236 268 300 332 364 396 428 460 492 524 556 588 620 652 684 716 748 780 812 844 876 908 940 972 1004 13 45 77 109 141 173 205 237 269 301 333 365 397 429 461 493 525 557 589 621 653 685 717 749 781 813 845 877 909 941 973 1005 14 46 78 110 142 174 206 238 270 302 334 366 398 430 462 494 526 558 590 622 654 686 718 750 782 814 846 878 910 942 974 1006 15 47 79 111 143 175 207 239 271 303 335 367 399 431 463 495 527 559 591 623 655 687 719 751 783 815 847 879 911 943 975 1007 16 48 80 112 144 176 208 240 272 304 336 368 400 432 464 496 528 560 592 624 656 688 720 752 784 816 848 880 912 944 976 1008 17 49 81 113 145 177 209 241 273 305 337 369 401 433 465 497 529 561 593 625 657 689 721 753 785 817 849 881 913 945 977 1009 18 50 82 114 146 178 210 242 274 306 338 370 402 434 466 498 530 562 594 626 658 690 722 754 786 818 850 882 914 946 978 1010 19 51 83 115 147 179 211 243 275 307 339 371 403 435 467 499 531 563 595 627 659 691 723 755 787 819 851 883 915 947 979 1011 20 52 84 116 148 180 212 244 276 308 340 372 404 436 468 500 532 564 596 628 660 692 724 756 788 820 852 884 916 948 980 1012 21 53 85 117 149 181 213 245 277 309 341 373 405 437 469 501 533 565 597 629 661 693 725 757 789 821 853 885 917 949 981 1013 22 54 86 118 150 182 214 246 278 310 342 374 406 438 470 502 534 566 598 630 662 694 726 758 790 822 854 886 918 950 982 1014 23 55 87 119 151 183 215 247 279 311 343 375 407 439 471 503 535 567 599 631 663 695 727 759 791 823 855 887 919 951 983 1015 24 56 88 120 152 184 216 248 280 312 344 376 408 440 472 504 536 568 600 632 664 696 728 760 792 824 856 888 920 952 984 1016 25 57 89 121 153 185 217 249 281 313 345 377 409 441 473 505 537 569 601 633 665 697 729 761 793 825 857 889 921 953 985 1017 26 58 90 122 154 186 218 250 282 314 346 378 410 442 474 506 538 570 602 634 666 698 730 762 794 826 858 890 922 954 986 1018 27 59 91 123 155 187 219 251 283 315 347 379 411 443 475 507 539 571 603 635 667 699 731 763 795 827 859 891 923 955 987 1019 28 60 92 124 156 188 220 252 284 316 348 380 412 444 476 508 540 572 604 636 668 700 732 764 796 828 860 892 924 956 988 1020 29 61 93 125 157 189 221 253 285 317 349 381 413 445 477 509 541 573 605 637 669 701 733 765 797 829 861 893 925 957 989 1021 30 62 94 126 158 190 222 254 286 318 350 382 414 446 478 510 542 574 606 638 670 702 734 766 798 830 862 894 926 958 990 1022 31 63 95 127 159 191 223 255 287 319 351 383 415 447 479 511 543 575 607 639 671 703 735 767 799 831 863 895 927 959 991 1023
// grid: 32 8
// threadgroup: 32 8
threadgroup float tile[32][33];
uint2 p = thread_position_in_threadgroup.xy;
for (uint r = p.y; r < 32; r += 8) {
  tile[r][p.x] = x[r * 32 + p.x];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint r = p.y; r < 32; r += 8) {
  y[r * 32 + p.x] = tile[p.x][r];
}

//// barrier_uniform_condition
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

//// benign_read_and_discarded
// The halo's corners are read, though nobody has stored them and nothing comes of it.
// finds: benign
// in: x float32 32 = 0..31
// out: y float32 32 = 0 3 6 9 12 15 18 21 24 27 30 33 36 39 42 45 48 51 54 57 60 63 66 69 72 75 78 81 84 87 90 31
threadgroup float tile[34];
uint i = thread_position_in_threadgroup.x;
tile[i + 1] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float sum = tile[i] + tile[i + 1] + tile[i + 2];
y[i] = i == 0 ? 0.0f : i == 31 ? x[31] : sum;

//// benign_read_of_counts
// Integers that nobody has stored are masked away.
// finds: benign
// in: x float32 32 = 0..31
// out: y uint32 32 = 0 2 0 4 0 6 0 8 0 10 0 12 0 14 0 16 0 18 0 20 0 22 0 24 0 26 0 28 0 30 0 32
threadgroup uint counts[32];
uint i = thread_position_in_threadgroup.x;
if (i & 1) counts[i] = uint(x[i]) + 1;
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = counts[i] & (0u - (i & 1));

//// benign_read_of_output
// An output's old value is read, and no bit of it is kept.
// finds: benign
// in: x float32 32 = 0..31
// out: y float32 32 = 0..31
uint i = thread_position_in_grid.x;
uint none = uint(x[31]) - 31;
y[i] = x[i] + float(as_type<uint>(y[i]) & none);

//// benign_same_value
// Every thread stores one value in one place: in threadgroup memory, by a copy of a struct.
// finds: benign
// in: x float32 32 = 0..31
// out: y float32 32 = 5..36
// header
struct Three { float a, b, c, d, e, f, g, h, i; };
// body
threadgroup float start;
threadgroup Three all;
uint i = thread_position_in_threadgroup.x;
start = x[5];
Three own = {};
own.c = x[0];
all = own;
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = start + all.c + x[i];

//// benign_same_value_in_groups
// Every threadgroup raises one flag in device memory.
// finds: benign
// in: x float32 64 = 1
// out: flag uint32 1 = 7
// init: 0
// grid: 64
// threadgroup: 32
if (x[thread_position_in_grid.x] > 0) {
  flag[0] = 7;
}

//// benign_same_value_twice
// Each lane of a simdgroup stores the sum that all of them have, round after round.
// finds: benign
// in: x float32 64 = 1..64
// out: y float32 64 = 2080
// grid: 64
// threadgroup: 64
threadgroup float sums[2];
uint i = thread_position_in_threadgroup.x;
float total = 0;
for (int k = 0; k < 2; ++k) {
  sums[simdgroup_index_in_threadgroup] = simd_sum(x[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  total = sums[0] + sums[1];
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
y[i] = total;

//// benign_store_after_barrier_of_none
// A barrier that fences nothing stands between the reads of a tile and its next stores.
// finds: benign
// in: x float32 64 = 0..63
// out: y float32 64 = 63..0
// grid: 64
// threadgroup: 64
threadgroup float tile[64];
uint i = thread_position_in_threadgroup.x;
float sum = 0;
for (int k = 0; k < 2; ++k) {
  tile[i] = k * x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum += tile[63 - i];
  threadgroup_barrier(mem_flags::mem_none);
}
y[i] = sum;

//// benign_store_after_broadcast
// One lane reads for all of its simdgroup, which then stores to the place.
// finds: benign
// in: x float32 32 = 0..31
// out: y float32 32 = 100..131
// init: 100
uint i = thread_position_in_grid.x;
float v = 0;
if (i == 0) {
  for (uint k = 0; k < 32; ++k) v = max(v, y[k]);
}
y[i] = simd_broadcast(v, 0) + x[i];

//// benign_store_after_vote
// A vote of the simdgroup stands between a neighbour's read and the store.
// finds: benign
// in: x float32 32 = 0..31
// out: y float32 32 = 1..31 0
// init: 0
threadgroup float tile[32];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float next = tile[(i + 1) & 31];
if (simd_any(next > 30)) {
  tile[i] = next;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[i];

//// bfloat_arithmetic
// bfloat with bfloat stays bfloat, bfloat with float is float.
// in: x bfloat16 8 = 1 2 3 4 5 6 7 8
// out: y bfloat16 8 = 2.5 5 7.5 10 12.5 15 17.5 20
// out: z float32 8 = 1.001953125 2.001953125 3.001953125 4.001953125 5.001953125 6.001953125 7.001953125 8.001953125
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
bfloat b = x[i] * 2.5bf;
y[i] = b;
z[i] = x[i] + 0.001953125f;

//// bfloat_scalar
// bfloat converts to float by itself and back only by a cast, rounding to nearest even.
// in: x float32 8 = 1 1.00390625 1.01171875 3.140625 -2.5 0.1 100 65536
// out: y float32 8 = 1 1 1.015625 3.140625 -2.5 0.10009765625 100 65536
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
bfloat b = bfloat(x[i]);
float f = b;
y[i] = f;

//// bfloat_vector
// bfloat vectors: arithmetic, conversion to float4 and back, reinterpretation of the bits.
// in: x bfloat16 8 = 1 2 3 4 5 6 7 8
// out: y bfloat16 8 = 6 8 10 12 0.5 1 1.5 2
// out: bits uint16 4 = 16256 16384 16448 16512
// grid: 1
// threadgroup: 1
const device bfloat4* v = (const device bfloat4*)x;
device bfloat4* w = (device bfloat4*)y;
w[0] = v[0] + v[1];
w[1] = bfloat4(float4(v[0]) * 0.5f);
device ushort4* b = (device ushort4*)bits;
b[0] = as_type<ushort4>(v[0]);

//// brace_arguments
// Braces where a vector is expected: an argument, a result, an assignment, an element.
// in: x float32 4 = 1 2 3 4
// out: y float32 8 = 6 3 2 7 4 8 1 4
// grid: 1
// threadgroup: 1
// header
float total(float3 v) { return v.x + v.y + v.z; }
float2 both(float a, float b) { return {a, b}; }
float weigh(float2 v, half2 w) { return v.x * w.x + v.y * w.y; }
// body
y[0] = total({x[0], x[1], x[2]});
float2 v = both(x[0], x[1]);
y[1] = v.x + v.y;
v = {x[1], 5.0f};
y[2] = v.x;
y[3] = v.x + v.y;
y[4] = weigh({1.0f, 1.0f}, {2.0h, 2.0h});
float2 list[2] = {{1, 2}, {3, 5}};
y[5] = list[1].x + list[1].y;
y[6] = max(float2{x[0], 0}, {0, 0}).x;
y[7] = float4{x[0], x[1], x[2], x[3]}.w;

//// comment_in_any_script
// Comments in any script and in any form.
// in: x float32 32 = 0..31
// out: y float32 32 = 1..32
// header
// π ≈ 3.14159, naïve
/* 次の行 — “quoted” */ constant float STEP = 1; /* ψ: a quote " and
   αβγ on a second line */
#define NEXT(v) ((v) + STEP)  // → the next one
// body
uint i = thread_position_in_grid.x;  // λ \
   continued δ
y[i] = NEXT(x[i]);  // ✓

//// constant_bound_spellings
// A constant integer as a bound: of two words, several in one declaration, made of others, static.
// out: y int32 4 = 12 6 24 8
// grid: 1
// threadgroup: 1
// header
constant unsigned int ROWS = 3;
constant int COLUMNS = 4, HALVES = COLUMNS / 2;
static constant ushort SIDE = ROWS * HALVES;
const constant uint8_t EIGHT = 8;
enum { TWO = 2 };
constant uint AREA = SIDE * COLUMNS;
// body
float a[ROWS * COLUMNS];
float b[SIDE];
threadgroup float c[AREA];
int d[EIGHT][TWO];
y[0] = sizeof(a) / sizeof(a[0]);
y[1] = sizeof(b) / sizeof(b[0]);
c[0] = 0;
y[2] = sizeof(c) / sizeof(float);
y[3] = sizeof(d) / sizeof(d[0]);

//// constant_bounds
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

//// constant_inputs
// Short inputs arrive in constant memory.
// in: scale float32 1 = 3
// in: bias float32 7 = 1..7
// in: x float32 8 = 0..7
// out: y float32 8 = 7 10 13 16 19 22 25 28
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
y[i] = scale[0] * x[i] + bias[6];

//// control_flow
// switch, do, continue, break, the comma and the conditional operator.
// out: y int32 8 = 10 11 22 22 3 3 3 8
// grid: 8
// threadgroup: 8
int i = int(thread_position_in_grid.x);
int r = 0;
switch (i) {
  case 0:
  case 1:
    r = 10 + i;
    break;
  case 2:
  case 3: {
    r = 22;
    break;
  }
  default:
    do {
      r += 1;
      if (r == 8) {
        break;
      }
      if (i < 7) {
        continue;
      }
    } while (r < (i == 7 ? 100 : 3));
}
y[i] = r;

//// constant_tables
// Tables at program scope, of one dimension and more, spelled in each order of the words.
// out: y int32 6 = 6 10 16 4 9 2
// grid: 1
// threadgroup: 1
// header
static constexpr constant uint turns[2][3] = {{1, 2, 3}, {4, 5, 6}};
constant constexpr int cube[2][2][2] = {{{1, 2}, {3, 4}}, {{5, 6}, {7, 8}}};
constant const short2 pairs[2] = {short2(1, 3), short2(2, 4)};
static constant float steps[3][1] = {{4.0f}, {5.0f}, {6.0f}};
namespace tables { constexpr constant bool odd[2][2] = {{false, true}, {true, false}}; }
template <int N> struct Powers { static constexpr constant int of[2] = {N, N * N}; };
template <> struct Powers<2> { static constexpr constant int of[2] = {2, 4}; };
constant constexpr const int Powers<2>::of[2];
// body
y[0] = int(turns[0][0] + turns[1][1]);
y[1] = cube[0][1][0] + cube[1][1][0];
y[2] = cube[1][1][1] + cube[1][1][1];
y[3] = int(steps[0][0]);
y[4] = Powers<3>::of[1] + Powers<2>::of[1] - 4;
y[5] = int(tables::odd[0][1]) + pairs[0].x;

//// constant_is_const
// Memory in the constant space is const, whether a pointer or a reference to it says so or not.
// kernel: pick
// in: x float32 8 = 0..7
// in: n int32 1 = 3
// in: table float32 4 = 10 20 30 40
// out: y float32 8 = 33 34 35 36 37 38 39 40
// grid: 8
// threadgroup: 8
// header
constant float base[2] = {1.0f, 2.0f};
inline int size(constant int& n) { return n; }
inline float last(constant float* p, int n) { return p[n - 1]; }
template <typename T> T first(constant T* p) { return p[0]; }
struct Row {
  constant float* values;
  float operator[](int i) const thread { return values[i]; }
};
[[kernel]] void pick(
    const device float* x [[buffer(0)]],
    const constant int& n [[buffer(1)]],
    constant const float* table [[buffer(2)]],
    device float* y [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
  Row row{table};
  const float all = last(table, size(n)) + first(table) - row[0] + last(base, 2) + first(base);
  y[i] = x[i] + all;
}

//// conversions
// Float to integer truncates, to half rounds to nearest even; bool is 0 or 1.
// in: x float32 8 = 1.9 -1.9 2.5 2049 2051 0 -0.5 3
// out: y int32 8 = 1 -1 2 2049 2051 0 0 3
// out: z float32 8 = 1.9003906 -1.9003906 2.5 2048 2052 0 -0.5 3
// out: b int32 8 = 1 1 1 1 1 0 1 1
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
y[i] = static_cast<int>(x[i]);
z[i] = float(half(x[i]));
b[i] = bool(x[i]);

//// dequantise_4bit
// Nibbles of packed words with a scale and a bias, the pattern of quantised kernels.
// in: w uint32 8 = 1985229328
// in: s float16 8 = 0.5
// in: b float16 8 = -1
// out: y float32 64 = -1 -0.5 0 0.5 1 1.5 2 2.5
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device uint8_t* bytes = (const device uint8_t*)(w + i);
float scale = s[i];
float bias = b[i];
for (int j = 0; j < 4; ++j) {
  uint8_t v = bytes[j];
  y[i * 8 + 2 * j] = scale * float(v & 0x0f) + bias;
  y[i * 8 + 2 * j + 1] = scale * float((v & 0xf0) >> 4) + bias;
}

//// disjoint_bytes
// Threads writing neighbouring bytes of one word do not race.
// in: x uint8 64 = 0..63
// out: y uint8 64 = 63..0
// grid: 64
// threadgroup: 64
threadgroup uchar tile[64];
uint i = thread_position_in_threadgroup.x;
tile[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = tile[63 - i];

//// early_return_without_barrier
// Threads beyond the end may return when no collective follows.
// in: x float32 50 = 0..49
// out: y float32 50 = 1..50
// grid: 64
// threadgroup: 64
uint i = thread_position_in_grid.x;
if (i >= 50) {
  return;
}
y[i] = x[i] + 1.0f;

//// finite_recursion
// Recursion is allowed in kernels since Metal 2.4.
// out: y int32 8 = 1 1 2 6 24 120 720 5040
// grid: 8
// threadgroup: 8
// header
int factorial(int n) {
  return n < 2 ? 1 : n * factorial(n - 1);
}
// body
uint i = thread_position_in_grid.x;
y[i] = factorial(int(i));

//// float_overloads
// max, min and clamp for float, half, bfloat and vectors, literals included.
// in: x float32 8 = -4 -3 -2 -1 0 1 2 3
// out: y float32 8 = -3..0 2 5 6 7
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float v = x[i];
half h = max(half(v), 1.0h);
bfloat b = min(bfloat(1.0f), bfloat(2.0f));
float4 c = clamp(float4(v), -1.0f, 1.0f);
float r = max(v, 0.0f) + metal::min(v, 1.0f) + min(float(h), 1.0f) + float(b);
y[i] = r + c.y;

//// fp_pragmas
// Floating-point pragmas, at program scope and in a block; without contraction the product is rounded.
// in: x float32 1 = 1.000244140625
// out: y float32 2 = 0 5.960464477539063e-08
// grid: 1
// threadgroup: 1
// header
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
float apart(float a, float b, float c) { return a * b + c; }
#pragma METAL fp contract(fast)
float together(float a, float b, float c) {
  #pragma METAL fp math_mode(relaxed)
  return fma(a, b, c);
}
// body
#pragma METAL fp contract(off)
y[0] = apart(x[0], x[0], -1.00048828125f);
y[1] = together(x[0], x[0], -1.00048828125f);

//// function_constants
// Optional code and arguments by function constant; mx.fast.metal_kernel cannot set one.
// kernel: add_one
// constants: 0:bool=true 1:int=5 2:bool=false
// in: x float32 8 = 0..7
// out: y float32 8 = 5..12
// grid: 8
// threadgroup: 8
// header
constant bool use_step [[function_constant(0)]];
constant int step_size [[function_constant(1)]];
constant bool has_bias [[function_constant(2)]];
[[kernel]] void add_one(
    const device float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    const device float* bias [[buffer(2), function_constant(has_bias)]],
    uint i [[thread_position_in_grid]]) {
  float v = x[i];
  if (use_step) {
    v += float(step_size);
  }
  if (has_bias) {
    v += bias[i];
  }
  y[i] = v;
}
// body

//// function_constants_by_macro
// A function constant declared with more words than it needs, as headers' macros spell it.
// kernel: choose
// constants: 0:bool=true 1:int=5 2:bool=false
// in: x int32 4 = 1 2 3 4
// out: y int32 4 = 6 7 8 9
// grid: 4
// threadgroup: 4
// header
#define STATIC_CONSTANT static constant constexpr const
STATIC_CONSTANT bool forward [[function_constant(0)]];
STATIC_CONSTANT int width [[function_constant(1)]];
constant const bool back [[function_constant(2)]];
[[kernel]] void choose(
    const device int* x [[buffer(0)]],
    device int* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  y[i] = x[i] + (forward ? width : 0) - (back ? 1 : 0);
}

//// function_words_as_attributes
// The words for kinds of functions in their own places, in both spellings.
// out: y float32 32 = 7
// header
kernel void one(device float* y [[buffer(0)]]) { y[0] = 1; }
[[kernel]] void two(device float* y [[buffer(0)]]) { y[0] = 2; }
[[host_name("3")]] [[kernel]] void three(device float* y [[buffer(0)]]) { y[0] = 3; }
// body
y[thread_position_in_grid.x] = 7;

//// geometric
// dot, cross, length, distance, normalize, their squares and reflect.
// out: y float32 10 = 32 -3 6 -3 5 25 5 0.6 0.8 -1
// grid: 1
// threadgroup: 1
float3 a = float3(1.0f, 2.0f, 3.0f);
float3 b = float3(4.0f, 5.0f, 6.0f);
y[0] = dot(a, b);
float3 c = cross(a, b);
y[1] = c.x;
y[2] = c.y;
y[3] = c.z;
float2 d = float2(3.0f, 4.0f);
y[4] = length(d);
y[5] = length_squared(d);
y[6] = distance(d, float2(0.0f));
float2 n = normalize(d);
y[7] = n.x;
y[8] = n.y;
y[9] = reflect(float2(1.0f, -1.0f), float2(1.0f, 0.0f)).x;

//// grid_attributes
// Positions and sizes of a three-dimensional grid with ragged last threadgroups.
// out: y int32 60 = 0..59
// out: s int32 8 = 5 4 3 4 2 2 2 1
// grid: 5 4 3
// threadgroup: 4 2 2
uint3 p = thread_position_in_grid;
uint3 n = threads_per_grid;
uint flat = (p.z * n.y + p.y) * n.x + p.x;
uint3 q = threadgroup_position_in_grid * uint3(4, 2, 2) + thread_position_in_threadgroup;
y[flat] = all(p == q) ? int(flat) : -1;
if (flat == 0) {
  s[0] = int(n.x);
  s[1] = int(n.y);
  s[2] = int(n.z);
  s[3] = int(threads_per_threadgroup.x);
  s[4] = int(threadgroups_per_grid.x);
  s[5] = int(threadgroups_per_grid.y);
  s[6] = int(threadgroups_per_grid.z);
  s[7] = int(simdgroups_per_threadgroup);
}

//// half_and_bfloat
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

//// half_and_bfloat_by_template
// half and bfloat convert into each other where a template names the type, and element by element.
// in: x float32 1 = 1.5
// out: y float32 8 = 1.5 1.5 1.5 3 1.5 1.5 1.5 1.5
// template: T=float16 U=bfloat16
// grid: 1
// threadgroup: 1
// header
template <typename To, typename From> To cast(From v) { return static_cast<To>(v); }
template <typename To, typename From> To construct(From v) { return To(v); }
template <typename To, typename From> struct Converted {
  To value;
  Converted(From v) : value((To)v) {}
};
template <class V, class W> V widen(W w) { return V(w); }
// body
y[0] = float(cast<half>(bfloat(x[0])));
y[1] = float(construct<bfloat>(half(x[0])));
Converted<half, bfloat> c(bfloat(x[0]));
y[2] = float(c.value);
half4 v = widen<half4>(bfloat4(x[0]));
y[3] = float(v.x + v.w);
T t = T(x[0]);
U u = U(t);
y[4] = float(u);
t = static_cast<T>(u);
y[5] = float(t);
y[6] = float(half(u) + T(U(t)) - t);
y[7] = float((T)u);

//// harmless_attributes
// Attributes and pragmas that say nothing about what is computed.
// out: y float32 32 = 3
// header
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-variable"
__attribute__((always_inline)) inline float one() { return 1; }
[[gnu::noinline]] float two() { return 2; }
static inline __attribute__((__unused__)) float three() { return one() + two(); }
#pragma clang diagnostic pop
// body
[[maybe_unused]] float unused = 0;
y[thread_position_in_grid.x] = three();

//// helpers_and_templates
// Function templates, specialisation, if constexpr, variadic packs and overloads by address space.
// in: x float32 8 = 0..7
// out: y float32 8 = 21 27 33 39 45 51 57 63
// grid: 8
// threadgroup: 8
// header
template <typename T, int N>
struct Scale {
  static constexpr constant int factor = N;
  static T apply(T v) { return v * T(N); }
};
template <typename T>
struct Scale<T, 0> {
  static T apply(T) { return T(0); }
};
template <bool Twice, typename T>
T maybe_twice(T v) {
  if constexpr (Twice) {
    return v + v;
  } else {
    return v;
  }
}
template <typename T>
T total(T v) {
  return v;
}
template <typename T, typename... Rest>
T total(T v, Rest... rest) {
  return v + total(rest...);
}
inline int space(const device float*) { return 20; }
inline int space(const threadgroup float*) { return 30; }
inline int space(const thread float*) { return 40; }
// body
uint i = thread_position_in_grid.x;
float v = maybe_twice<true>(Scale<float, 3>::apply(x[i])) + Scale<float, 0>::apply(5.0f);
y[i] = total(v, 1.0f) + float(space(x));

//// host_name_spellings
// Names for the host: of a plain kernel, of an instantiation by its signature, with attributes.
// kernel: third
// in: x float32 8 = 0..7
// out: y float32 8 = 0 2 4 6 8 10 12 14
// grid: 8
// threadgroup: 8
// header
[[host_name("first")]] kernel void one(device float* y [[buffer(0)]]) { y[0] = 1; }
[[kernel, host_name("second")]] void two(device float* y [[buffer(0)]]) { y[0] = 2; }
template <typename T, int K>
[[kernel]] void times(
    const device T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  y[i] = K * x[i];
}
template [[host_name("third")]] [[kernel]] void times<float, 2>(
    const device float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]);
template [[host_name("fourth")]] kernel void times<int, 3>(
    const device int*, device int*, uint);
// body

//// implicit_conversions
// What MSL converts by itself: between scalars except to bfloat, and a scalar into a vector.
// in: x float32 8 = 1..8
// out: y float32 8 = 2.5 4 5.5 7 8.5 10 11.5 13
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
half h = x[i] * 0.5f;
int n = x[i];
float f = h;
float one = true;
float4 v = one;
v += n;
y[i] = f + v.z;

//// initialised_output
// An output with an initial value may be written in part.
// in: x float32 32 = 0..31
// out: y float32 32 = 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 16..31
// init: 7
// grid: 32
// threadgroup: 32
uint i = thread_position_in_grid.x;
if (x[i] > 15.0f) {
  y[i] = x[i];
}

//// integer_bits
// clz, ctz, popcount, reverse_bits, extract_bits, insert_bits.
// out: y uint32 10 = 31 32 4 32 8 2147483648 10 3840 16 1
// grid: 1
// threadgroup: 1
y[0] = clz(1u);
y[1] = clz(0u);
y[2] = ctz(16u);
y[3] = ctz(0u);
y[4] = popcount(255u);
y[5] = reverse_bits(1u);
y[6] = extract_bits(0xa0u, 4u, 4u);
y[7] = insert_bits(0u, 15u, 8u, 4u);
y[8] = clz(ushort(0));
y[9] = popcount(uchar(128));

//// integer_division_by_zero
// Dividing by zero gives an unspecified value and disturbs nothing else.
// in: x int32 8 = 1 2 0 4 0 6 7 8
// in: use int32 8 = 1 1 0 1 0 1 1 1
// out: y int32 8 = 100 50 -1 25 -1 20 16 16
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
int q = 100 / x[i];
int r = 100 % x[i];
y[i] = use[i] ? q + r : -1;

//// integer_functions
// abs, absdiff, addsat, subsat, hadd, rhadd, mulhi, mul24, mad24, madhi, rotate.
// out: y int32 12 = 7 9 127 0 3 4 1 600 601 2 -2147483646 1
// grid: 1
// threadgroup: 1
y[0] = abs(-7);
y[1] = int(absdiff(-4, 5));
y[2] = addsat(char(100), char(100));
y[3] = subsat(uchar(3), uchar(9));
y[4] = hadd(3, 4);
y[5] = rhadd(3, 4);
y[6] = mulhi(1 << 30, 4);
y[7] = mul24(20, 30);
y[8] = mad24(20, 30, 1);
y[9] = madhi(1 << 30, 4, 1);
y[10] = int(rotate(0x40000001u, 1u));
y[11] = int(rotate(0x80000000u, 1u));

//// integer_overloads
// min, max and clamp with both arguments of one type, for every width.
// in: x int32 8 = -4 -3 -2 -1 0 1 2 3
// out: y int32 8 = 1 1 1 2 3 5 7 8
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
int v = x[i];
uint u = max(uint(1), 1u);
short s = min(short(1), short(2));
long l = max(1L, long(-5));
y[i] = clamp(v, -2, 2) + max(0, v) + int(u) + s + int(l);

//// integer_wraparound
// Unsigned arithmetic is modulo 2^n and shifts use the low bits of the count.
// in: n uint32 8 = 0 1 31 32 33 40 63 64
// out: y uint32 8 = 1 2 2147483648 1 2 256 2147483648 1
// out: z uint32 8 = 4294967295 0 30 31 32 39 62 63
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
y[i] = 1u << n[i];
z[i] = n[i] - 1u;

//// lambda
// Lambdas, since Metal 3.2.
// in: x float32 8 = 0..7
// out: y float32 8 = 1 4 7 10 13 16 19 22
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float k = 3.0f;
auto f = [=](float v) { return k * v + 1.0f; };
y[i] = f(x[i]);

//// literal_types
// Literals without a suffix are float, never double.
// out: y int32 4 = 4 2 2 4
// grid: 1
// threadgroup: 1
auto f = 1.0;
auto h = 1.0h;
auto b = 1.0bf;
y[0] = sizeof(f);
y[1] = sizeof(h);
y[2] = sizeof(b);
y[3] = sizeof(0.1 * 2);
static_assert(is_same_v<decltype(1.0), float>, "float");

//// logging
// Messages to the log, of a logger of one's own and of the default one: they change nothing.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 2 4 6 8
// grid: 4
// threadgroup: 4
// header
#include <metal_logging>
constant metal::os_log logger("kernels", "doubling");
constant char message[] = "seen %f";
// body
uint i = thread_position_in_grid.x;
logger.log_debug("thread %u", i);
logger.log_error(message, x[i]);
if (x[i] > 8.0f) {
  metal::os_log_default.log("large: %f of %u", x[i], i);
}
y[i] = 2.0f * x[i];

//// math_classification
// isnan, isinf, isfinite, isnormal, signbit; NaN loses every comparison but !=.
// in: x float32 8 = 0 1 -1 inf -inf nan 1e-40 2
// out: y int32 48 = 0 0 1 0 0 0 0 0 1 1 0 0 0 0 1 1 1 0 0 1 0 0 0 0 0 1 0 0 1 0 1 0 0 0 0 1 0 0 1 0 0 0 0 0 1 1 0 0
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device int* w = y + 6 * i;
float v = x[i];
w[0] = isnan(v);
w[1] = isinf(v);
w[2] = isfinite(v);
w[3] = isnormal(v);
w[4] = signbit(v);
w[5] = v != v;

//// math_common
// clamp, mix, saturate, sign, step, smoothstep, fma, copysign, fdim, fmin and fmax.
// in: x float32 8 = -2 -0.5 0 0.25 0.5 0.75 1 3
// out: y float32 88 = -1 -3 0 -1 0 0 -1 -2 0 -2 0.5 -0.5 0 0 -1 0 0 2 -0.5 0 -0.5 0.5 0 1 0 0 0 0 3 0 0 0 0.5 0.25 1.5 0.25 1 0 0.15625 3.5 -0.25 0 0.25 0.5 0.5 2 0.5 1 1 0.5 4 -0.5 0 0.5 0.5 0.75 2.5 0.75 1 1 0.84375 4.5 -0.75 0.25 0.5 0.75 1 3 1 1 1 1 5 -1 0.5 0.5 1 1 7 1 1 1 1 9 -3 2.5 0.5 3
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 11 * i;
float v = x[i];
w[0] = clamp(v, -1.0f, 1.0f);
w[1] = mix(1.0f, 3.0f, v);
w[2] = saturate(v);
w[3] = sign(v);
w[4] = step(0.5f, v);
w[5] = smoothstep(0.0f, 1.0f, v);
w[6] = fma(v, 2.0f, 3.0f);
w[7] = copysign(v, -1.0f);
w[8] = fdim(v, 0.5f);
w[9] = fmin(v, 0.5f);
w[10] = fmax(v, 0.5f);

//// math_constants
// The named constants and numeric_limits.
// out: y float32 10 = 3.1415927 1.442695 0.6931472 3.4028234663852886e+38 65504 1 1 1.1920929e-07 0.0009765625 -3.4028234663852886e+38
// grid: 1
// threadgroup: 1
y[0] = M_PI_F;
y[1] = M_LOG2E_F;
y[2] = M_LN2_F;
y[3] = MAXFLOAT;
y[4] = MAXHALF;
y[5] = isinf(INFINITY);
y[6] = isnan(NAN);
y[7] = numeric_limits<float>::epsilon();
y[8] = numeric_limits<half>::epsilon();
y[9] = -numeric_limits<float>::max();

//// math_exponential
// exp, exp2, exp10, log, log2, log10, pow and powr.
// in: x float32 8 = 0.25 0.5 1 2 3 4 5 6
// out: y float32 64 = 1.2840254 1.1892071 1.7782794 -1.3862944 -2 -0.60206 0.125 0.03125 1.6487212 1.4142135 3.1622777 -0.6931472 -1 -0.30103 0.35355338 0.17677669 2.7182817 2 10 0 0 0 1 1 7.389056 4 100 0.6931472 1 0.30103 2.828427 5.656854 20.085537 8 1000 1.0986123 1.5849625 0.47712126 5.196152 15.588457 54.59815 16 10000 1.3862944 2 0.60206 8 32 148.41316 32 100000 1.609438 2.321928 0.69897 11.18034 55.9017 403.4288 64 1000000 1.7917595 2.5849626 0.7781513 14.6969385 88.18163
// tolerance: 2e-6
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 8 * i;
float v = x[i];
w[0] = exp(v);
w[1] = exp2(v);
w[2] = exp10(v);
w[3] = log(v);
w[4] = log2(v);
w[5] = log10(v);
w[6] = pow(v, 1.5f);
w[7] = powr(v, 2.5f);

//// math_roots
// sqrt, rsqrt, and the fast and precise namespaces.
// in: x float32 8 = 0.25 1 2 3 4 9 16 25
// out: y float32 56 = 0.5 2 0.7788008 0.8408964 -1.3862944 2 0.5 1 1 0.36787945 0.5 0 1 1 1.4142135 0.70710677 0.13533528 0.25 0.6931472 0.70710677 1.4142135 1.7320508 0.57735026 0.049787067 0.125 1.0986123 0.57735026 1.7320508 2 0.5 0.01831564 0.0625 1.3862944 0.5 2 3 0.33333334 0.0001234098 0.001953125 2.1972246 0.33333334 3 4 0.25 1.12535176e-07 1.5258789e-05 2.7725887 0.25 4 5 0.2 1.3887944e-11 2.9802322e-08 3.218876 0.2 5
// tolerance: 1e-5
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 7 * i;
float v = x[i];
w[0] = sqrt(v);
w[1] = rsqrt(v);
w[2] = fast::exp(-v);
w[3] = fast::exp2(-v);
w[4] = metal::precise::log(v);
w[5] = metal::precise::rsqrt(v);
w[6] = metal::fast::sqrt(v);

//// math_rounding
// floor, ceil, trunc, rint (ties to even), round (ties away), fract and fmod.
// in: x float32 8 = -2.5 -1.5 -0.5 0.5 1.5 2.5 3.25 -3.75
// out: y float32 56 = -3 -2 -2 -2 -3 0.5 -0.5 -2 -1 -1 -2 -2 0.5 -1.5 -1 0 0 0 -1 0.5 -0.5 0 1 0 0 1 0.5 0.5 1 2 1 2 2 0.5 1.5 2 3 2 2 3 0.5 0.5 3 4 3 3 3 0.25 1.25 -4 -3 -3 -4 -4 0.25 -1.75
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 7 * i;
float v = x[i];
w[0] = floor(v);
w[1] = ceil(v);
w[2] = trunc(v);
w[3] = rint(v);
w[4] = round(v);
w[5] = fract(v);
w[6] = fmod(v, 2.0f);

//// math_trigonometric
// The trigonometric and hyperbolic functions, the pi variants and sincos.
// in: x float32 8 = -0.9 -0.5 -0.25 0.125 0.25 0.5 0.75 0.9
// out: y float32 104 = -0.7833269 0.62161 -1.2601582 -1.1197695 2.6905658 -0.7328151 -1.0265167 1.4330864 -0.71629786 -0.30901706 -0.9510565 -0.42285392 -0.16171691 -0.47942555 0.87758255 -0.5463025 -0.5235988 2.0943952 -0.4636476 -0.5210953 1.127626 -0.46211717 -1 0 -0.24497867 0.39815703 -0.24740396 0.9689124 -0.25534192 -0.25268024 1.8234766 -0.24497867 -0.25261232 1.0314131 -0.24491866 -0.70710677 0.70710677 -0.124354996 0.72150844 0.12467473 0.9921977 0.12565513 0.12532783 1.4454685 0.124354996 0.12532577 1.0078226 0.124353 0.38268343 0.9238795 0.06241881 1.1168724 0.24740396 0.9689124 0.25534192 0.25268024 1.3181161 0.24497867 0.25261232 1.0314131 0.24491866 0.70710677 0.70710677 0.124354996 1.2163163 0.47942555 0.87758255 0.5463025 0.5235988 1.0471976 0.4636476 0.5210953 1.127626 0.46211717 1 0 0.24497867 1.3570081 0.6816388 0.73168886 0.93159646 0.8480621 0.7227343 0.6435011 0.8223167 1.2946833 0.63514894 0.70710677 -0.70710677 0.35877067 1.4133276 0.7833269 0.62161 1.2601582 1.1197695 0.45102686 0.7328151 1.0265167 1.4330864 0.71629786 0.30901706 -0.9510565 0.42285392 1.4049369
// tolerance: 4e-6
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
device float* w = y + 13 * i;
float v = x[i];
w[0] = sin(v);
w[1] = cos(v);
w[2] = tan(v);
w[3] = asin(v);
w[4] = acos(v);
w[5] = atan(v);
w[6] = sinh(v);
w[7] = cosh(v);
w[8] = tanh(v);
w[9] = sinpi(v);
w[10] = cospi(v);
w[11] = atan2(v, 2.0f);
float c;
float s = sincos(v, c);
w[12] = s + c;

//// math_vectors
// Math functions work component by component, for half as well.
// in: x float32 8 = 0 1 2 3 4 5 6 7
// out: y float32 8 = 1 2 4 8 16 32 64 128
// out: z float16 4 = 0 1 2 3
// grid: 2
// threadgroup: 2
uint i = thread_position_in_grid.x;
device float4* w = (device float4*)y;
w[i] = exp2(((const device float4*)x)[i]);
if (i == 0) {
  half4 h = half4(0.0h, 1.0h, 4.0h, 9.0h);
  ((device half4*)z)[0] = sqrt(h);
}

//// matrix_bfloat
// bfloat matrices.
// in: a bfloat16 8x8 = 0..63
// out: y bfloat16 8x8 = 0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 64 66 68 70 72 74 76 78 80 82 84 86 88 90 92 94 96 98 100 102 104 106 108 110 112 114 116 118 120 122 124 126
// grid: 32
// threadgroup: 32
simdgroup_bfloat8x8 m;
simdgroup_bfloat8x8 d = simdgroup_bfloat8x8(bfloat(2.0f));
simdgroup_load(m, a, 8);
simdgroup_bfloat8x8 r;
simdgroup_multiply(r, m, d);
simdgroup_store(r, y, 8);

//// matrix_filled_default
// The second size of a filled or diagonal matrix is the first; one may be converted from another.
// out: y float32 8x8 = 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0 0 3
// header
typedef simdgroup_matrix<float, 8, 8> Square;
// body
threadgroup float tile[64];
auto a = make_filled_simdgroup_matrix<float, 8>(2.0f);
Square b = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
auto one = make_diagonal_simdgroup_matrix<float, 8>(1.0f);
auto two = make_diagonal_simdgroup_matrix<float, 8, 8>(2.0f);
simdgroup_float8x8 c(1.0f);
simdgroup_multiply_accumulate(c, one, two, one);
simdgroup_store(c, y, 8);

//// matrix_filled_square
// The second size of make_filled_simdgroup_matrix is the first one where it is left out.
// out: y float32 64 = 2.5
simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8>(2.5f);
simdgroup_store(m, y, 8);

//// matrix_half
// Half matrices in, half matrix out, through threadgroup memory.
// in: a float16 8x8 = 0..63
// out: y float16 8x8 = 0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 64 66 68 70 72 74 76 78 80 82 84 86 88 90 92 94 96 98 100 102 104 106 108 110 112 114 116 118 120 122 124 126
// grid: 32
// threadgroup: 32
threadgroup half tile[64];
uint i = thread_index_in_simdgroup;
tile[i] = a[i];
tile[i + 32] = a[i + 32];
simdgroup_barrier(mem_flags::mem_threadgroup);
simdgroup_half8x8 m;
simdgroup_half8x8 d = simdgroup_half8x8(2.0h);
simdgroup_load(m, tile, 8);
simdgroup_half8x8 r;
simdgroup_multiply(r, m, d);
simdgroup_store(r, y, 8);

//// matrix_multiply_accumulate
// d = a * b + c on 8x8 matrices of a simdgroup.
// in: a float32 8x8 = 0..63
// in: b float32 8x8 = 1 0 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1
// out: y float32 8x8 = 5 7 7..13 23 15..21 39 23..29 55 31..37 71 39..45 87 47..53 103 55..61 119 63..68
// grid: 32
// threadgroup: 32
simdgroup_float8x8 ma;
simdgroup_float8x8 mb;
simdgroup_float8x8 mc = make_filled_simdgroup_matrix<float, 8, 8>(5.0f);
simdgroup_load(ma, a, 8);
simdgroup_load(mb, b, 8);
simdgroup_float8x8 md;
simdgroup_multiply_accumulate(md, ma, mb, mc);
simdgroup_store(md, y, 8);

//// matrix_products
// Matrices are column major: m * v, v * m, m * n and m * scalar.
// out: y float32 12 = 7 10 5 11 7 10 15 22 2 4 6 8
// grid: 1
// threadgroup: 1
float2x2 m = float2x2(float2(1.0f, 2.0f), float2(3.0f, 4.0f));
float2 v = float2(1.0f, 2.0f);
device float2* w = (device float2*)y;
w[0] = m * v;
w[1] = v * m;
float2x2 n = m * m;
w[2] = n[0];
w[3] = n[1];
float2x2 k = 2.0f * m;
w[4] = k[0];
w[5] = k[1];

//// matrix_shapes
// Non-square matrices, transpose, determinant, the diagonal constructor and element access.
// out: y float32 9 = 14 32 3 2 -2 5 0 9 1
// grid: 1
// threadgroup: 1
float2x3 m = float2x3(float3(1.0f, 2.0f, 3.0f), float3(4.0f, 5.0f, 6.0f));
float3x2 t = transpose(m);
float2 r = t * float3(1.0f, 2.0f, 3.0f);
y[0] = r.x;
y[1] = r.y;
y[2] = m[0][2];
y[3] = t[1].x;
y[4] = determinant(float2x2(1.0f, 2.0f, 3.0f, 4.0f));
float4x4 d = float4x4(5.0f);
y[5] = d[3][3];
y[6] = d[3][2];
d[1] = float4(9.0f);
y[7] = d[1].z;
half3x3 h = half3x3(1.0h);
y[8] = float(h[2][2]);

//// matrix_thread_elements
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

//// matrix_thread_elements_write
// Elements written through a vector reference of the lane's fragment, as MLX does.
// in: a float32 8x8 = 0..63
// out: y float32 8x8 = 0 4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64 68 72 76 80 84 88 92 96 100 104 108 112 116 120 124 128 132 136 140 144 148 152 156 160 164 168 172 176 180 184 188 192 196 200 204 208 212 216 220 224 228 232 236 240 244 248 252
// grid: 32
// threadgroup: 32
simdgroup_float8x8 m;
simdgroup_load(m, a, 8);
reinterpret_cast<thread float2&>(m.thread_elements()) *= 4.0f;
simdgroup_store(m, y, 8);

//// matrix_transposed_load
// Loads with a wider row, an origin and a transpose; the scalar constructor is a diagonal.
// in: a float32 16x16 = 0..255
// out: y float32 8x8 = 132 148 164 180 196 212 228 244 133 149 165 181 197 213 229 245 134 150 166 182 198 214 230 246 135 151 167 183 199 215 231 247 136 152 168 184 200 216 232 248 137 153 169 185 201 217 233 249 138 154 170 186 202 218 234 250 139 155 171 187 203 219 235 251
// out: z float32 8x8 = 396 399 402 405 408 411 414 417 444 447 450 453 456 459 462 465 492 495 498 501 504 507 510 513 540 543 546 549 552 555 558 561 588 591 594 597 600 603 606 609 636 639 642 645 648 651 654 657 684 687 690 693 696 699 702 705 732 735 738 741 744 747 750 753
// grid: 32
// threadgroup: 32
simdgroup_float8x8 t;
simdgroup_float8x8 n;
simdgroup_load(t, a, 16, ulong2(4, 8), true);
simdgroup_store(t, y, 8);
simdgroup_load(n, a, 16, ulong2(4, 8));
simdgroup_float8x8 three = simdgroup_float8x8(3.0f);
simdgroup_float8x8 r;
simdgroup_multiply(r, n, three);
simdgroup_store(r, z, 8);

//// methods_noexcept
// A method's address space stands in front of noexcept; conversions, operators, constructors.
// out: y int32 4 = 7 3 10 5
// grid: 1
// threadgroup: 1
// header
template <typename T, T v> struct Fixed {
  using value_type = T;
  constexpr operator value_type() const thread noexcept { return v; }
  constexpr operator value_type() const constant noexcept { return v; }
};
struct Count {
  int n;
  Count(int start) thread noexcept : n(start) {}
  int add(int k) thread noexcept {
    n += k;
    return n;
  }
  int operator()() const thread noexcept { return n; }
};
constant Fixed<int, 3> three{};
// body
Fixed<int, 7> seven;
Count c(4);
y[0] = seven;
y[1] = three;
y[2] = c.add(6);
y[3] = c() / 2;

//// online_softmax_row
// One row of softmax per simdgroup with a running maximum.
// in: x float32 4x64 = 0..3
// out: y float32 4x64 = 0.0020036628 0.0054465197 0.014805176 0.040244643
// tolerance: 1e-5
// grid: 128
// threadgroup: 32
uint row = threadgroup_position_in_grid.x;
uint lane = thread_index_in_simdgroup;
float m = -INFINITY;
float l = 0.0f;
for (uint c = lane; c < 64; c += 32) {
  float v = x[row * 64 + c];
  float n = max(m, v);
  l = l * fast::exp(m - n) + fast::exp(v - n);
  m = n;
}
float top = simd_max(m);
l = simd_sum(l * fast::exp(m - top));
for (uint c = lane; c < 64; c += 32) {
  y[row * 64 + c] = fast::exp(x[row * 64 + c] - top) / l;
}

//// pack_unpack
// Packing of normalised integers.
// out: y uint32 2 = 4294902015 1
// out: z float32 4 = 1 0 1 1
// grid: 1
// threadgroup: 1
y[0] = pack_float_to_unorm4x8(float4(1.0f, 0.0f, 1.0f, 1.0f));
float4 u = unpack_unorm4x8_to_float(0xffff00ffu);
y[1] = pack_float_to_snorm2x16(float2(0.0f)) == 0u;
((device float4*)z)[0] = u;

//// packed_at_any_element
// packed_half4 needs the alignment of half only.
// in: x float16 36 = 0..35
// out: y float32 8 = 10 26 42 58 74 90 106 122
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device packed_half4* v = (const device packed_half4*)(x + 4 * i + 1);
half4 h = half4(*v);
float4 f = float4(h);
y[i] = f.x + f.y + f.z + f.w;

//// packed_components
// Components of packed vectors by index and by letter, and packed bytes.
// in: x uint8 12 = 1..12
// out: y int32 4 = 6 15 24 33
// grid: 4
// threadgroup: 4
uint i = thread_position_in_grid.x;
const device packed_uchar3* v = (const device packed_uchar3*)x;
packed_uchar3 p = v[i];
packed_float3 q = packed_float3(0.0f, 0.0f, 0.0f);
q[0] = float(p[0]);
q.y = float(p.y);
q[2] = float(p.z);
y[i] = int(q.x + q[1] + q.z);

//// packed_float3
// Tightly packed positions, loaded into float3 and stored back.
// in: x float32 24 = 0..23
// out: y float32 24 = 0 10 20 30 40 50 60 70 80 90 100 110 120 130 140 150 160 170 180 190 200 210 220 230
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
const device packed_float3* v = (const device packed_float3*)x;
device packed_float3* w = (device packed_float3*)y;
float3 p = v[i];
w[i] = packed_float3(p * 10.0f);

//// pointers_to_pointers
// Pointers and references to pointers; a reference to one may leave thread out (MLX's quantized.h).
// in: x float32 32 = 0..31
// out: y float32 32 = 1..32
// header
void advance(const device float* thread& p) { p += 1; }
template <typename T> void back(const device T*& p) { p -= 1; }
float first(const device float* const thread* p) { return (*p)[0]; }
// body
uint i = thread_position_in_grid.x;
const device float* p = x + i;
const device float* thread* q = &p;
advance(p);
back(p);
y[i] = first(q) + 1;

//// preprocessor
// Macros, conditionals and the version macro.
// out: y int32 3 = 9 1 1
// grid: 1
// threadgroup: 1
// header
#define SQUARE(a) ((a) * (a))
#define PASTE(a, b) a##b
#if defined(__METAL_VERSION__) && __METAL_VERSION__ >= 310
#define HAS_BFLOAT 1
#else
#define HAS_BFLOAT 0
#endif
// body
int value1 = 1;
y[0] = SQUARE(1 + 2);
y[1] = PASTE(value, 1);
y[2] = HAS_BFLOAT;

//// private_arrays
// Two-dimensional private arrays, aggregate initialisation, metal::array and pointer steps.
// in: x float32 8 = 0..7
// out: y float32 8 = 10 16 22 28 34 40 46 52
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
float m[2][3] = {{0.0f, 0.0f, 0.0f}};
for (int r = 0; r < 2; ++r) {
  for (int c = 0; c < 3; ++c) {
    m[r][c] += x[i];
  }
}
array<float, 4> a = {1.0f, 2.0f, 3.0f, 4.0f};
float s = 0.0f;
thread float* p = &m[0][0];
for (int j = 0; j < 3; ++j) {
  s += *p++;
}
for (size_t j = 0; j < a.size(); ++j) {
  s += a[j];
}
y[i] = s + m[1][0] + m[1][1] + m[1][2];

//// program_scope_constants
// Tables and constants at program scope live in constant memory.
// in: x uint32 8 = 0 1 2 3 3 2 1 0
// out: y float32 8 = 1.5 2.5 3.5 4.5 4.5 3.5 2.5 1.5
// grid: 8
// threadgroup: 8
// header
constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
constant constexpr float half_step = 0.5f;
enum class Mode : uint { off, on };
typedef float Real;
using Index = uint;
// body
Index i = thread_position_in_grid.x;
constexpr Mode mode = Mode::on;
Real v = table[x[i]];
y[i] = mode == Mode::on ? v + half_step : 0.0f;

//// quad_ballots
// The votes of a quad: a ballot, the mask of its threads, all and any of both.
// out: y uint32 30 = 15 6 15 1 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
quad_vote ballot = quad_ballot((i & 3) == 1 || (i & 3) == 2);
quad_vote active = quad_active_threads_mask();
uint kept[5] = {uint(quad_vote::vote_t(active)), uint(quad_vote::vote_t(ballot)), 15,
                uint(ballot.any() && active.all()), uint(ballot.all())};
if (i < 30) y[i] = kept[i % 5];

//// quad_fill
// Filling shuffles of quadgroups, whole and in pairs, and with bfloat through MLX's names.
// out: up int32 32 = -103 0 1 2 -107 4 5 6 -111 8 9 10 -115 12 13 14 -119 16 17 18 -123 20 21 22 -127 24 25 26 -131 28 29 30
// out: pairs int32 32 = 1 -100 3 -102 5 -104 7 -106 9 -108 11 -110 13 -112 15 -114 17 -116 19 -118 21 -120 23 -122 25 -124 27 -126 29 -128 31 -130
// out: half_down float32 32 = 2 3 -100 -101 6 7 -104 -105 10 11 -108 -109 14 15 -112 -113 18 19 -116 -117 22 23 -120 -121 26 27 -124 -125 30 31 -128 -129
int lane = int(thread_index_in_simdgroup);
int filling = -100 - lane;
up[lane] = quad_shuffle_and_fill_up(lane, filling, ushort(1));
pairs[lane] = quad_shuffle_and_fill_down(lane, filling, ushort(1), ushort(2));
half_down[lane] = float(simd_shuffle_and_fill_down(bfloat16_t(lane), bfloat16_t(filling), ushort(2), ushort(4)));

//// quad_functions
// Reductions, shuffles and broadcasts over quads of four lanes.
// out: s int32 32 = 6 6 6 6 22 22 22 22 38 38 38 38 54 54 54 54 70 70 70 70 86 86 86 86 102 102 102 102 118 118 118 118
// out: m int32 32 = 3 3 3 3 7 7 7 7 11 11 11 11 15 15 15 15 19 19 19 19 23 23 23 23 27 27 27 27 31 31 31 31
// out: b int32 32 = 2 2 2 2 6 6 6 6 10 10 10 10 14 14 14 14 18 18 18 18 22 22 22 22 26 26 26 26 30 30 30 30
// out: x int32 32 = 1 0 3 2 5 4 7 6 9 8 11 10 13 12 15 14 17 16 19 18 21 20 23 22 25 24 27 26 29 28 31 30
// out: u int32 32 = 0 0 1 2 4 4 5 6 8 8 9 10 12 12 13 14 16 16 17 18 20 20 21 22 24 24 25 26 28 28 29 30
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
int a = int(i);
s[i] = quad_sum(a);
m[i] = quad_max(a);
b[i] = quad_broadcast(a, ushort(2));
x[i] = quad_shuffle_xor(a, ushort(1));
u[i] = quad_shuffle_up(a, ushort(1));

//// quad_votes
// Votes and prefixes over quads.
// out: y int32 32 = 0 0 0 0 0 0 0 0 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
// out: z int32 32 = 1
// out: p int32 32 = 1 2 3 4
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = quad_all(i / 4 == 2);
z[i] = quad_any((i & 3) == 3);
p[i] = quad_prefix_inclusive_sum(1);

//// qualified_matrices
// Matrices with their namespace, whole and as parameters.
// out: y float32 32 = 5
// header
float trace(metal::float2x2 m) { return m[0][0] + m[1][1]; }
// body
metal::float2x2 m = metal::float2x2(2.0f);
metal::half3x4 h(metal::half4(1.0h), metal::half4(0.0h), metal::half4(0.0h));
y[thread_position_in_grid.x] = trace(m) + float(h[0].x);

//// qualified_packed_vectors
// Packed vectors with their namespace.
// in: x float32 96 = 1
// out: y float32 32 = 4
uint i = thread_position_in_grid.x;
metal::packed_float3 a = ((const device metal::packed_float3*)x)[i];
metal :: packed_uchar4 b = metal::packed_uchar4(metal::uchar4(1));
y[i] = a[0] + a.y + a.z + float(b[3]);

//// qualified_vectors
// Vectors and integers with their namespace, by using declarations too.
// out: y float32 32 = 9
// header
using metal::float3;
float sum(metal::float3 v) { return v.x + v.y + v.z; }
// body
using metal::uint2;
metal::uint2 a = metal::uint2(1u, 2u);
::metal::half4 b = metal::half4(1.0h);
metal::uint c = a.x;
y[thread_position_in_grid.x] = sum(float3(2)) + float(a.y * c) + float(b.w);

//// reinterpret_bits
// as_type between types of one size, float4 to float3 included.
// out: y uint32 8 = 1065353216 1073741824 15360 16256 3 4 1 1
// grid: 1
// threadgroup: 1
y[0] = as_type<uint>(1.0f);
y[1] = as_type<uint2>(float2(1.0f, 2.0f)).y;
y[2] = as_type<ushort>(1.0h);
y[3] = as_type<ushort>(bfloat(1.0f));
short2 s = as_type<short2>(0x00040003);
y[4] = uint(s.x);
y[5] = uint(s.y);
float3 t = as_type<float3>(float4(1.0f, 2.0f, 3.0f, 4.0f));
y[6] = uint(t.x);
y[7] = as_type<float>(0x3f800000) == 1.0f;

//// same_value_read
// Many threads reading one location is no race.
// in: x float32 64 = 0..63
// out: y float32 64 = 5..68
// grid: 64
// threadgroup: 32
uint i = thread_position_in_grid.x;
y[i] = x[i] + x[5];

//// simd_bitwise
// Bitwise reductions over a simdgroup.
// out: y uint32 3 = 16 31 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
uint a = simd_and(i | 16u);
uint o = simd_or(i);
uint x = simd_xor(i);
if (i == 0) {
  y[0] = a & 16u;
  y[1] = o;
  y[2] = x;
}

//// simd_broadcast
// One lane to all, the first active lane to all, and who is first.
// out: y float32 32 = 7
// out: z float32 32 = 0
// out: w int32 32 = 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_broadcast(float(i), ushort(7));
z[i] = simd_broadcast_first(float(i));
w[i] = simd_is_first();

//// simd_fill_modulo
// Filling shuffles within groups of `modulo` lanes: what leaves one side comes from the filling data.
// out: up32 int32 32 = -129 -130 -131 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28
// out: up8 int32 32 = -105 -106 -107 0 1 2 3 4 -113 -114 -115 8 9 10 11 12 -121 -122 -123 16 17 18 19 20 -129 -130 -131 24 25 26 27 28
// out: down16 int32 32 = 5 6 7 8 9 10 11 12 13 14 15 -100 -101 -102 -103 -104 21 22 23 24 25 26 27 28 29 30 31 -116 -117 -118 -119 -120
// out: down2 int32 32 = 1 -100 3 -102 5 -104 7 -106 9 -108 11 -110 13 -112 15 -114 17 -116 19 -118 21 -120 23 -122 25 -124 27 -126 29 -128 31 -130
int lane = int(thread_index_in_simdgroup);
int filling = -100 - lane;
up32[lane] = simd_shuffle_and_fill_up(lane, filling, ushort(3));
up8[lane] = simd_shuffle_and_fill_up(lane, filling, ushort(3), ushort(8));
down16[lane] = simd_shuffle_and_fill_down(lane, filling, ushort(5), ushort(16));
down2[lane] = simd_shuffle_and_fill_down(lane, filling, ushort(1), ushort(2));

//// simd_partial_group
// A threadgroup of 40 threads: the second simdgroup has eight lanes.
// out: y int32 2 = 32 8
// grid: 40
// threadgroup: 40
int n = simd_sum(1);
if (thread_index_in_simdgroup == 0) {
  y[simdgroup_index_in_threadgroup] = n;
}

//// simd_prefix
// Inclusive and exclusive prefix sums and products.
// out: y int32 32 = 0 1 3 6 10 15 21 28 36 45 55 66 78 91 105 120 136 153 171 190 210 231 253 276 300 325 351 378 406 435 465 496
// out: z int32 32 = 0 0 1 3 6 10 15 21 28 36 45 55 66 78 91 105 120 136 153 171 190 210 231 253 276 300 325 351 378 406 435 465
// out: p float32 32 = 2 4 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8
// out: q float32 32 = 1 2 4 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_prefix_inclusive_sum(int(i));
z[i] = simd_prefix_exclusive_sum(int(i));
float f = i < 3 ? 2.0f : 1.0f;
p[i] = simd_prefix_inclusive_product(f);
q[i] = simd_prefix_exclusive_product(f);

//// simd_reductions
// Sum, maximum, minimum and product over a simdgroup.
// in: x float32 32 = 1..32
// out: y float32 4 = 528 32 1 16
// out: k int32 3 = 496 31 0
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
float s = simd_sum(x[i]);
float hi = simd_max(x[i]);
float lo = simd_min(x[i]);
float p = simd_product(i < 4 ? 2.0f : 1.0f);
int ks = simd_sum(int(i));
int kh = simd_max(int(i));
int kl = simd_min(int(i));
if (i == 0) {
  y[0] = s;
  y[1] = hi;
  y[2] = lo;
  y[3] = p;
  k[0] = ks;
  k[1] = kh;
  k[2] = kl;
}

//// simd_rotate_and_fill
// Rotations wrap; shuffle_and_fill takes the missing lanes from a second value.
// out: r int32 32 = 3..31 0 1 2
// out: s int32 32 = 29 30 31 0..28
// out: d int32 32 = 2..31 100 101
// out: u int32 32 = 130 131 0..29
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
int a = int(i);
r[i] = simd_shuffle_rotate_down(a, ushort(3));
s[i] = simd_shuffle_rotate_up(a, ushort(3));
d[i] = simd_shuffle_and_fill_down(a, 100 + a, ushort(2));
u[i] = simd_shuffle_and_fill_up(a, 100 + a, ushort(2));

//// simd_shuffles
// Shuffles: by lane, by mask, up and down keep the lanes that would wrap.
// out: y int32 32 = 31..0
// out: z int32 32 = 5 4 7 6 1 0 3 2 13 12 15 14 9 8 11 10 21 20 23 22 17 16 19 18 29 28 31 30 25 24 27 26
// out: u int32 32 = 0 1 2 0..28
// out: d int32 32 = 3..31 29 30 31
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
y[i] = simd_shuffle(int(i), ushort(31 - i));
z[i] = simd_shuffle_xor(int(i), ushort(5));
u[i] = simd_shuffle_up(int(i), ushort(3));
d[i] = simd_shuffle_down(int(i), ushort(3));

//// simd_uniform_branch
// A whole simdgroup may take a branch alone and reduce inside it.
// in: x float32 64 = 1..64
// out: y float32 2 = 528 64
// grid: 64
// threadgroup: 64
float v = x[thread_position_in_grid.x];
float r;
if (simdgroup_index_in_threadgroup == 0) {
  r = simd_sum(v);
} else {
  r = simd_max(v);
}
if (thread_index_in_simdgroup == 0) {
  y[simdgroup_index_in_threadgroup] = r;
}

//// simd_vector_reductions
// Reductions of vectors and of half go component by component.
// out: y float32 4 = 496 992 32 0
// out: h float16 1 = 496
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
float4 s = simd_sum(float4(float(i), 2.0f * float(i), 1.0f, 0.0f));
half t = simd_sum(half(i));
if (i == 0) {
  ((device float4*)y)[0] = s;
  h[0] = t;
}

//// simd_votes
// simd_all, simd_any, ballots and the mask of the active lanes.
// out: y int32 5 = 0 1 1 4 32
// grid: 32
// threadgroup: 32
uint i = thread_index_in_simdgroup;
bool all_low = simd_all(i < 16);
bool any_low = simd_any(i < 16);
simd_vote v = simd_ballot(i < 32);
uint64_t bits = uint64_t(simd_vote::vote_t(simd_ballot((i & 7) == 3)));
uint64_t active = uint64_t(simd_vote::vote_t(simd_active_threads_mask()));
if (i == 0) {
  y[0] = all_low;
  y[1] = any_low;
  y[2] = v.any();
  y[3] = popcount(uint(bits));
  y[4] = popcount(uint(active));
}

//// simdgroup_matrix_operator
// Products of simdgroup matrices by operator, in a chain, of which an intermediate one has no name.
// in: x float32 64 = 0..63
// in: z float32 64 = 1..64
// out: y float32 64 = 1148 1176 1204 1232 1260 1288 1316 1344 3004 3096 3188 3280 3372 3464 3556 3648 4860 5016 5172 5328 5484 5640 5796 5952 6716 6936 7156 7376 7596 7816 8036 8256 8572 8856 9140 9424 9708 9992 10276 10560 10428 10776 11124 11472 11820 12168 12516 12864 12284 12696 13108 13520 13932 14344 14756 15168 14140 14616 15092 15568 16044 16520 16996 17472
// grid: 32
// threadgroup: 32
// body
simdgroup_float8x8 a, b, two(2.0f);
simdgroup_load(a, x, 8);
simdgroup_load(b, z, 8);
simdgroup_float8x8 c = (a * two) * b;
simdgroup_store(two * (c * simdgroup_float8x8(0.25f)), y, 8);

//// strided_input
// The generated shape, stride and rank arguments of a sliced, transposed view.
// in: x float32 8x16[:,2:6]
// out: y float32 4x8 = -2.75 -0.75 1.25 3.25 -2.75 -0.75 1.25 3.25 1.875 3.875 -2.125 -0.125 1.875 3.875 -2.125 -0.125 -1.5 0.5 2.5 -3.5 -1.5 0.5 2.5 -3.5 3.125 -2.875 -0.875 1.125 3.125 -2.875 -0.875 1.125
// strided: true
// grid: 4 8
// threadgroup: 4 8
uint c = thread_position_in_grid.x;
uint r = thread_position_in_grid.y;
if (x_ndim == 2 && int(c) < x_shape[1] && int(r) < x_shape[0]) {
  y[c * 8 + r] = x[r * x_strides[0] + c * x_strides[1]];
}

//// structs_and_methods
// A struct with constructors, methods, operators and a nested type.
// in: x float32 8 = 0..7
// out: y float32 8 = 2 4 6 8 10 12 14 16
// grid: 8
// threadgroup: 8
// header
struct Complex {
  float re;
  float im;
  Complex() = default;
  Complex(float r, float i) : re(r), im(i) {}
  float sum() const { return re + im; }
  Complex operator+(thread const Complex& o) const { return Complex(re + o.re, im + o.im); }
  thread Complex& operator+=(Complex o) {
    re += o.re;
    im += o.im;
    return *this;
  }
};
// body
uint i = thread_position_in_grid.x;
Complex a = Complex(x[i], x[i]);
Complex b(1.0f, 1.0f);
Complex c = a + b;
c += Complex(-1.0f, 1.0f);
y[i] = c.sum();

//// structs_in_memory
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

//// template_arguments
// A dtype, an integer and a flag as template arguments.
// template: T=float16 D=4 DOUBLE=true
// in: x float16 32 = 0..31
// out: y float16 8 = 12 44 76 108 140 172 204 236
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
T acc = T(0);
for (int j = 0; j < D; ++j) {
  acc += x[i * D + j];
}
if (DOUBLE) {
  acc *= T(2);
}
y[i] = acc;

//// thread_indices
// Flat thread index, simdgroup index and lane of a two-dimensional threadgroup.
// out: y int32 96 = 0..95
// grid: 16 6
// threadgroup: 16 6
uint flat = thread_index_in_threadgroup;
uint2 p = thread_position_in_threadgroup.xy;
bool same = flat == p.y * 16 + p.x &&
    flat == simdgroup_index_in_threadgroup * threads_per_simdgroup + thread_index_in_simdgroup &&
    thread_index_in_quadgroup == (flat & 3);
y[flat] = same ? int(flat) : -1;

//// threadgroup_initialised
// Threadgroup variables with an initialiser: an array, a scalar, braces without a value.
// out: y float32 32 = 6
// finds: benign
threadgroup float sums[4] = {1, 2};
threadgroup int count = 3;
threadgroup float2 pairs[2] = {};
threadgroup_barrier(mem_flags::mem_threadgroup);
y[thread_position_in_grid.x] = sums[0] + sums[1] + sums[3] + count + pairs[1].x;

//// threadgroup_matrix_parameter
// Arrays of several dimensions as parameters, and volatile threadgroup memory.
// out: y float32 32 = 31..0
// header
inline void fill(threadgroup float t[4][8], uint i) { t[i / 8][i % 8] = float(i); }
inline float read(const threadgroup float t[4][8], uint i) { return t[i / 8][i % 8]; }
// body
volatile threadgroup float u[32];
threadgroup float t[4][8];
uint i = thread_position_in_threadgroup.x;
fill(t, i);
threadgroup_barrier(mem_flags::mem_threadgroup);
u[i] = read(t, 31 - i);
y[i] = u[i];

//// threadgroup_matrix_spellings
// Two-dimensional threadgroup parameters: an array, a pointer to a row, a reference to all of it.
// out: y float32 8 = 12 15 18 21 0 3 6 9
// grid: 8
// threadgroup: 8
// header
template <int N> void by_array(threadgroup float t[][N], uint i) { t[i / N][i % N] = float(i); }
void by_row(threadgroup float (*t)[4], uint i) { t[i / 4][i % 4] *= 2; }
template <typename T> void by_reference(threadgroup T (&t)[2][4], uint i) { t[i / 4][i % 4] += T(i); }
void element(threadgroup const float (&row)[4], device float* y, uint i) { *y = row[i]; }
// body
threadgroup float t[2][4];
uint i = thread_position_in_threadgroup.x;
by_array<4>(t, i);
by_row(t, i);
by_reference(t, i);
threadgroup_barrier(mem_flags::mem_threadgroup);
element(t[1 - i / 4], y + i, i % 4);

//// type_traits
// The metal type traits and conditional types.
// template: T=bfloat16
// in: x bfloat16 8 = 1..8
// out: y float32 8 = 2..9
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
using Acc = conditional_t<sizeof(T) == 2, float, T>;
static_assert(is_same_v<Acc, float>, "accumulates in float");
static_assert(is_floating_point_v<float> && is_integral_v<int> && !is_same_v<int, uint>, "traits");
Acc a = static_cast<Acc>(x[i]);
y[i] = a + Acc(is_same<T, bfloat>::value);

//// union_and_base
// Unions and derived classes are used by MLX's own kernels.
// out: y uint32 2 = 1065353216 9
// grid: 1
// threadgroup: 1
// header
union Bits {
  float f;
  uint u;
};
struct Base {
  uint v = 4;
};
struct Derived : Base {
  uint w = 5;
};
struct yes : metal::bool_constant<true> {};
// body
Bits b;
b.f = 1.0f;
y[0] = b.u;
Derived d;
y[1] = yes::value ? d.v + d.w : 0;

//// unroll_pragmas
// Unrolling pragmas in both spellings.
// in: x float32 32 = 0..31
// out: y float32 8 = 6 22 38 54 70 86 102 118
// grid: 8
// threadgroup: 8
// header
#define UNROLL _Pragma("clang loop unroll(full)")
// body
uint i = thread_position_in_grid.x;
float acc = 0.0f;
UNROLL
for (int j = 0; j < 2; ++j) {
  acc += x[i * 4 + j];
}
#pragma unroll
for (int j = 2; j < 4; ++j) {
  acc += x[i * 4 + j];
}
y[i] = acc;

//// vec_specialisation
// Templates specialised on vectors: a class, a variable's trait, a function by deduction.
// out: y int32 8 = 4 3 0 1 1 4 7 2
// grid: 1
// threadgroup: 1
// header
template <typename T> struct Length { static constexpr constant int value = 0; };
template <typename T, int N> struct Length<vec<T, N>> { static constexpr constant int value = N; };
template <typename T> struct Element { typedef T type; };
template <typename T> struct Element<vec<T, 2>> { typedef T type; };
template <typename T, int N>
struct Element<metal::vec<T, N> > { typedef T type; };
template <typename T, int N> int length_of(vec<T, N> v) { return N; }
template <typename T, int N> T first_of(const thread vec<T, N>& v) { return v[0]; }
template <int N> struct Only { enum { value = 1 }; };
template <typename T> struct Kind { enum { value = 1 }; };
template <int N> struct Kind<vec<float, N>> { enum { value = 7 }; };
// body
y[0] = Length<float4>::value;
y[1] = Length<uint3>::value;
y[2] = Length<float>::value;
y[3] = Kind<uint2>::value;
Element<half3>::type h = half(1);
y[4] = int(h);
y[5] = length_of(int4(1)) * first_of(int3(1, 2, 3));
y[6] = Kind<float3>::value;
Element<ushort2>::type u = 2;
y[7] = u;

//// vector_bool
// Comparisons give bool vectors; any, all, not and the bitwise and logical operators on them.
// in: x float32 8 = 1 -2 3 -4 5 6 7 8
// out: y int32 10 = 1 0 1 0 1 0 1 1 0 1
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
bool4 p = v[0] > 0.0f;
bool4 q = v[1] > 0.0f;
y[0] = p.x;
y[1] = p.y;
y[2] = p[2];
y[3] = int(p[3]);
y[4] = any(p);
y[5] = all(p);
y[6] = all(q);
y[7] = any(!p);
y[8] = all(p & q);
y[9] = all(p | q);

//// vector_bool_element_insert
// Single elements of bool2, bool3 and bool4 are written and kept apart.
// out: y int32 9 = 1 0 0 1 1 0 1 1 0
// grid: 1
// threadgroup: 1
bool2 a = bool2(false);
a.x = true;
bool3 b = bool3(true);
b[0] = false;
bool4 c = bool4(false, true, true, true);
c.w = false;
y[0] = a.x;
y[1] = a.y;
y[2] = b.x;
y[3] = b.y;
y[4] = b.z;
y[5] = c.x;
y[6] = c.y;
y[7] = c.z;
y[8] = c.w;

//// vector_constructors
// All ways to put a vector together, and the splat of a scalar.
// out: y float32 24 = 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 7 7 7 7
// grid: 1
// threadgroup: 1
device float4* w = (device float4*)y;
float2 a = float2(1.0f, 2.0f);
float2 b = float2(3.0f, 4.0f);
float3 c = float3(a, 3.0f);
w[0] = float4(a, b);
w[1] = float4(c, 4.0f);
w[2] = float4(1.0f, float3(2.0f, b));
w[3] = float4(1.0f, float2(2.0f, 3.0f), 4.0f);
w[4] = float4{1.0f, 2.0f, 3.0f, 4.0f};
w[5] = 7.0f;

//// vector_direct_initialiser
// Vectors initialised in parentheses: components, one scalar for all, several declarators, parts.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 10 4 15 6
// grid: 1
// threadgroup: 1
// header
inline float total(float4 v) { return v.x + v.y + v.z + v.w; }
float2 both(float a, float b);
float2 both(float a, float b) {
  const float2 v(a, b);
  return v;
}
struct Pair {
  float2 of(float2 a) const thread { float2 b(a); return b; }
};
// body
float4 a(x[0], x[1], x[2], x[3]);
float2 s(x[1]), t(1, 2), u(s * t);
uint3 n(1u, 2u, 3u);
half4 h(half2(1), half(2), half(3));
vec<float, 3> w(t, 12.0f);
Pair p;
y[0] = total(a);
y[1] = u.y;
y[2] = w.x + w.y + w.z;
y[3] = float(h.w) + both(float(n.x), 2.0f).x + p.of(t).y;

//// vector_direct_initialiser_of_products
// A product of two names in parentheses is a value, and a pointer parameter where the first is a type.
// in: x int32 4 = 3 4 5 6
// out: y int32 5 = 12 6 2 5 9
// grid: 1
// threadgroup: 1
// header
struct Counter { int n; };
int2 sums(thread Counter* a, thread Counter& b);
int2 sums(thread Counter* a, thread Counter& b) {
  return int2(a->n, a->n + b.n);
}
// body
const int rows = x[0], columns = x[1], lane = 6;
int2 size(rows * columns, lane);
int2 low(lane & rows, x[2]);
Counter a{5}, b{4};
int2 s(sums(&a, b));
y[0] = size.x;
y[1] = size.y;
y[2] = low.x;
y[3] = s.x;
y[4] = s.y;

//// vector_direct_spellings
// Vectors initialised in parentheses: by alias, deduced through a template, as a member.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 10 6 3 7
// grid: 1
// threadgroup: 1
// header
using quad = vec<float, 4>;
template <typename T> T weighted(T a, T b) {
  vec<T, 2> v(a, b), w(1, 2);
  return v.x * w.x + v.y * w.y;
}
struct Corner {
  float2 at;
  half2 size;
  Corner(float a, float b) : at(a, b), size(1, 2) {}
};
// body
const quad q(x[0], x[1], x[2], x[3]);
y[0] = q.x + q.y + q.z + q.w;
packed_float3 p(x[0], x[1], x[2]);
float3 c(p);
y[1] = c.x + c.y + c.z;
Corner k(x[0], x[1]);
y[2] = k.at.x + float(k.size.y);
for (float2 v(x[0], x[2]); v.x < 2; v.x += 1) {
  y[3] = weighted(v.x, v.y);
}

//// vector_half
// Half vectors and literals; sums round to half.
// in: x float16 8 = 1 2 3 4 0.5 0.25 0.125 2048
// out: y float16 8 = 1.5 2.25 3.125 2052 0.5 0.5 0.375 8192
// grid: 1
// threadgroup: 1
const device half4* v = (const device half4*)x;
device half4* w = (device half4*)y;
w[0] = v[0] + v[1];
w[1] = v[0] * v[1] * 1.0h;

//// vector_index
// Components by array index, read and written.
// in: x float32 4 = 1 2 3 4
// out: y float32 4 = 3 5 7 9
// grid: 1
// threadgroup: 1
float4 v = float4(x[0], x[1], x[2], x[3]);
float4 r;
for (int j = 0; j < 4; ++j) {
  r[j] = 2.0f * v[j] + 1.0f;
}
for (int j = 0; j < 4; ++j) {
  y[j] = r[j];
}

//// vector_integer
// Integer vectors: arithmetic, remainder, shifts by a vector, bitwise operators.
// out: y int32 16 = 5 7 9 11 1 0 3 2 2 8 24 64 -2 -3 -4 -5
// grid: 1
// threadgroup: 1
device int4* w = (device int4*)y;
int4 a = int4(1, 2, 3, 4);
int4 b = int4(4, 5, 6, 7);
w[0] = a + b;
w[1] = (b + 1) % int4(4, 2, 4, 3) + int4(0, 0, 0, 0);
w[2] = a << a;
w[3] = ~a;

//// vector_of_dereference
// A vector converts from what a pointer points at.
// in: x float16 8 = 1..8
// out: y float32 8 = 2 4 6 8 10 12 14 16
// grid: 2
// threadgroup: 2
uint i = thread_position_in_grid.x;
const device half4* p = (const device half4*)x + i;
float4 a = float4(*p);
float4 b = float4(*reinterpret_cast<const device half4*>(x + 4 * i));
device float4* w = (device float4*)y;
w[i] = a + b;

//// vector_pointer_cast
// Whole float4 loads and stores through cast pointers.
// in: x float32 64 = 0..63
// out: y float32 64 = 1 3 5 7 9 11 13 15 17 19 21 23 25 27 29 31 33 35 37 39 41 43 45 47 49 51 53 55 57 59 61 63 65 67 69 71 73 75 77 79 81 83 85 87 89 91 93 95 97 99 101 103 105 107 109 111 113 115 117 119 121 123 125 127
// grid: 16
// threadgroup: 16
uint i = thread_position_in_grid.x;
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
w[i] = v[i] * 2.0f + 1.0f;

//// vector_select
// select picks the second operand where the condition holds, for scalars and vectors.
// in: x float32 8 = -1 2 -3 4 5 6 7 8
// out: y float32 8 = 0 2 0 4 9 1 9 1
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
w[0] = select(float4(0.0f), v[0], v[0] > 0.0f);
w[1] = select(float4(1.0f), float4(9.0f), bool4(true, false, true, false));

//// vector_sizes
// Sizes and alignments of MSL table 2.3 and 2.4, checked at compile time.
// out: y int32 8 = 12 16 6 8 3 4 32 1
// grid: 1
// threadgroup: 1
static_assert(sizeof(float3) == 16 && alignof(float3) == 16, "float3");
static_assert(sizeof(half3) == 8 && alignof(half4) == 8, "half");
static_assert(sizeof(bool3) == 4 && sizeof(bool4) == 4 && sizeof(bool2) == 2, "bool");
static_assert(sizeof(bfloat4) == 8 && sizeof(bfloat2) == 4, "bfloat");
static_assert(sizeof(uchar3) == 4 && alignof(short2) == 4, "small");
static_assert(alignof(packed_float3) == 4 && alignof(packed_half4) == 2, "packed");
static_assert(sizeof(long) == 8 && sizeof(ulong2) == 16 && sizeof(size_t) == 8, "long");
static_assert(sizeof(float4x4) == 64 && sizeof(half3x3) == 24 && sizeof(float2x3) == 32, "matrix");
y[0] = sizeof(packed_float3);
y[1] = sizeof(float3);
y[2] = sizeof(packed_half3);
y[3] = sizeof(half3);
y[4] = sizeof(packed_uchar3);
y[5] = sizeof(uchar3);
y[6] = sizeof(long3);
y[7] = sizeof(bool);

//// vector_small_integers
// char, short and uchar vectors convert by constructor and wrap.
// out: y int32 12 = 44 1 2 3 -1 -2 -3 127 255 254 253 252
// grid: 1
// threadgroup: 1
device int4* w = (device int4*)y;
uchar4 a = uchar4(int4(300, 1, 2, 3));
char4 b = char4(-1, -2, -3, 127);
ushort4 c = ushort4(255, 254, 253, 252);
w[0] = int4(a);
w[1] = int4(b);
w[2] = int4(short4(c));

//// vector_swizzle_read
// Permuted, repeated and rgba component selections.
// in: x float32 8 = 1..8
// out: y float32 16 = 4 3 2 1 1 1 2 2 3 2 1 5 6 5 8 7
// grid: 1
// threadgroup: 1
const device float4* v = (const device float4*)x;
device float4* w = (device float4*)y;
float4 a = v[0];
float4 b = v[1];
w[0] = a.wzyx;
w[1] = a.xxyy;
w[2] = float4(a.bgr, b.r);
w[3] = float4(b.yx, b.ab);

//// vector_swizzle_write
// Swizzles on the left: pairs out of order, compound assignment, a swizzle of a swizzle.
// out: y float32 16 = 5 2 3 6 8 2 3 7 3 5 9 7 30 50 9 8
// grid: 1
// threadgroup: 1
device float4* w = (device float4*)y;
float4 p = float4(1.0f, 2.0f, 3.0f, 4.0f);
p.xw = float2(5.0f, 6.0f);
w[0] = p;
p.wx = float2(7.0f, 8.0f);
w[1] = p;
p.xyz = float3(3.0f, 5.0f, 9.0f);
w[2] = p;
p.xy *= 10.0f;
p.w += 1.0f;
w[3] = p;

//// volatile_threadgroup
// Volatile threadgroup memory: a variable in either order of words, a pointer, a parameter.
// out: y float32 32 = 31..0
// header
void put(volatile threadgroup float* p, float v) { *p = v; }
float get(threadgroup const volatile float* p) { return *p; }
void swap_with(threadgroup volatile float& a, float v) { a = v; }
// body
volatile threadgroup float a[32];
threadgroup volatile float b[32];
uint i = thread_position_in_threadgroup.x;
put(&a[i], float(i));
threadgroup_barrier(mem_flags::mem_threadgroup);
volatile threadgroup float* p = a + 31 - i;
swap_with(b[i], *p);
y[i] = get(b + i);

//// wide_integers
// 64-bit arithmetic, shifts, comparisons and strides.
// in: x uint32 8 = 1..8
// out: y uint64 8 = 8589934599 17179869191 25769803783 34359738375 42949672967 51539607559 60129542151 68719476743
// out: z int64 8 = -3000000000 -6000000000 -9000000000 -12000000000 -15000000000 -18000000000 -21000000000 -24000000000
// grid: 8
// threadgroup: 8
uint i = thread_position_in_grid.x;
ulong v = (ulong(x[i]) << 33) + 7ul;
y[i] = v;
long w = -long(x[i]) * 3000000000L;
z[i] = w;

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

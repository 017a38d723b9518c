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

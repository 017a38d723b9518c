product<ROWS, N, K, BITS, GROUP, TILES, WARPS, CHUNK, 1>(
    out, x, weight, scales, biases);

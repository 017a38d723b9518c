product<ROWS, N, K, BITS, GROUP, TILES, WARPS, CHUNK, SPLITS>(
    parts, x, weight, scales, biases);

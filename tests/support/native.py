"""The native CUDA kernels of tuned/, and calls that use all that is in them."""

from __future__ import annotations

from mlx_lm_openevolve.kernels.registry import Registry, tuned_root

NATIVE = {
    kernel.name: kernel
    for kernel in Registry(tuned_root(), writable=False).kernels()
    if kernel.native
}
# Every native kernel, every way to launch it, every kind of mask.
CASES = (
    ("gqa_decode_mma", "attention-b2-hq4-hkv2-lq1-lk128-d128-v128-bfloat16-none", {"splits": 1}),
    ("gqa_decode_mma", "attention-b1-hq8-hkv2-lq4-lk128-d64-v64-float16-bool", {"splits": 3}),
    (
        "wide_shared_mma",
        "attention-b1-hq16-hkv1-lq1-lk256-d512-v512-bfloat16-additive-latent",
        {},
    ),
    (
        "wide_shared_mma",
        "attention-b1-hq20-hkv1-lq1-lk64-d576-v576-float16-bool-sinks-latent",
        {"splits": 3, "fused": 0},
    ),
    ("wide_shared_mma", "attention-b1-hq8-hkv1-lq1-lk64-d512-v512-bfloat16-none", {"splits": 1}),
    ("wide_shared_mma", "attention-b1-hq8-hkv2-lq8-lk64-d256-v256-float16-causal", {"splits": 2}),
    ("tiles_mma", "attention-b1-hq4-hkv2-lq32-lk128-d128-v128-bfloat16-causal", {"splits": 2}),
    (
        "tiles_mma",
        "attention-b2-hq4-hkv2-lq8-lk64-d80-v80-float16-additive-sinks",
        {"splits": 2, "fused": 0},
    ),
    ("tiles_mma", "attention-b1-hq2-hkv1-lq2048-lk64-d256-v256-bfloat16-bool", {}),
    ("tiles_mma", "attention-b1-hq4-hkv2-lq2048-lk64-d80-v80-float16-bool", {}),
    ("prefill_wgmma", "attention-b1-hq4-hkv2-lq2048-lk64-d256-v256-bfloat16-causal", {}),
    ("prefill_wgmma", "attention-b1-hq2-hkv2-lq2048-lk64-d192-v128-float16-additive", {}),
    (
        "gqa_quantized_mma",
        "attention-b2-hq4-hkv2-lq1-lk128-d128-v128-bfloat16-none-kv4g64",
        {"splits": 1, "warps": 2},
    ),
    (
        "gqa_quantized_mma",
        "attention-b2-hq4-hkv2-lq1-lk128-d128-v128-bfloat16-bool-kv8g64",
        {"splits": 2, "warps": 2},
    ),
    (
        "gqa_quantized_mma",
        "attention-b1-hq8-hkv2-lq8-lk128-d128-v128-bfloat16-additive-kv8g128",
        {"splits": 3, "warps": 2},
    ),
    (
        "wide_shared_mma",
        "attention-b2-hq8-hkv1-lq1-lk128-d512-v512-bfloat16-none",
        {"splits": 8},
    ),
    (
        "wide_shared_mma",
        "attention-b1-hq8-hkv2-lq8-lk64-d256-v256-float16-causal",
        {"splits": 2, "fused": 1},
    ),
    (
        "wide_shared_mma",
        "attention-b1-hq20-hkv1-lq1-lk64-d576-v576-float16-bool-sinks-latent",
        {"splits": 3},
    ),
    # Seven query heads for a KV head: Qwen2.5-7B and 0.5B, Yi-34B.
    ("gqa_decode_mma", "attention-b1-hq14-hkv2-lq1-lk128-d128-v128-bfloat16-none", {"splits": 2}),
    (
        "gqa_quantized_mma",
        "attention-b1-hq7-hkv1-lq8-lk128-d64-v64-bfloat16-causal-kv4g64",
        {"splits": 2, "warps": 2},
    ),
    # Found by a search: each head size, with a mask and without, heads beyond a tile's rows.
    ("attention_mma_registers", "attention-b2-hq4-hkv2-lq1-lk128-d128-v128-bfloat16-bool", {}),
    (
        "attention_mma_registers",
        "attention-b1-hq14-hkv2-lq1-lk64-d64-v64-bfloat16-none",
        {"splits": 3, "warps": 2},
    ),
    # Products: groups of every size, rows in one, two and four tiles, outputs beyond the last.
    ("quantized_rows_mma", "linear-m1-n70-k320-bfloat16-q4g64", {"warps": 2}),
    ("quantized_rows_mma", "linear-m8-n40-k256-bfloat16-q8g64", {"tiles": 2, "warps": 4}),
    ("quantized_tiles_mma", "linear-m16-n70-k320-bfloat16-q4g64", {"warps": 2, "splits": 4}),
    (
        "quantized_tiles_mma",
        "linear-m32-n48-k256-bfloat16-q4g128",
        {"tiles": 1, "warps": 2, "splits": 1},
    ),
    ("quantized_tiles_mma", "linear-m16-n33-k288-bfloat16-q8g32", {"chunk": 128, "splits": 2}),
    ("quantized_rows_mma", "linear-m2-n33-k256-bfloat16-q8g32", {"tiles": 4, "warps": 1}),
    # Found by a search: one warp for a row and two, blocks with two tiles of outputs, one and none,
    # outputs beyond the last.
    ("product_subnormal_tiles", "linear-m1-n2120-k1024-bfloat16-q4g64", {"blocks": 132}),
    ("product_subnormal_tiles", "linear-m1-n70-k2048-float16-q4g64", {"blocks": 396}),
    # Experts: more rows of one than a tile has, and than a warp looks at once.
    ("quantized_experts_mma", "linear-m8-e5-n70-k320-bfloat16-q4g64", {"warps": 2}),
    (
        "quantized_experts_mma",
        "linear-m64-e3-n33-k384-bfloat16-q8g128",
        {"tiles": 2, "warps": 3, "chunk": 128},
    ),
)

"""Suites of attention workloads by name, for the search and the benchmarks."""

from __future__ import annotations

from .workload import Bucket, Workload

__all__ = ["SUITES"]


def _w(
    batch: int,
    q_heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    mask: str = "none",
    dtype: str = "bfloat16",
    *,
    kv_bits: int = 0,
    latent: bool = False,
) -> Bucket:
    shape = (batch, q_heads, kv_heads, q_len, kv_len, head_dim, head_dim)
    group = 64 if kv_bits else 0
    w = Workload(*shape, dtype, mask, kv_bits=kv_bits, kv_group=group, latent=latent)
    return w.bucket()


def _grid() -> list[Bucket]:
    """Sequence 32 to 4096, head dims 64, 80 and 128, GQA 1 to 8, masks none, bool and causal:
    prefill, one configuration of each (sequence, head dim, mask), heads and dtype varied along."""
    heads = ((8, 8), (16, 8), (32, 8), (32, 4), (24, 24))
    buckets = []
    for i, length in enumerate((32, 64, 128, 256, 512, 1024, 2048, 4096)):
        for j, dim in enumerate((64, 80, 128)):
            for k, mask in enumerate(("none", "bool", "causal")):
                q_heads, kv_heads = heads[(i + 2 * j + 3 * k) % len(heads)]
                dtype = ("bfloat16", "float16")[(i + j + k) % 2]
                q_len = min(length, 2048)
                buckets.append(_w(1, q_heads, kv_heads, q_len, length, dim, mask, dtype))
    return buckets


SUITES: dict[str, tuple[Bucket, ...]] = {
    # One sequence being continued: the shapes of common models, short to long context.
    "decode": (
        _w(1, 16, 8, 1, 256, 128),
        _w(1, 16, 8, 1, 1024, 128),
        _w(1, 16, 8, 1, 4096, 128),
        _w(1, 32, 8, 1, 1024, 128),
        _w(1, 32, 8, 1, 4096, 128),
        _w(1, 32, 8, 1, 4096, 64),
        _w(1, 16, 8, 8, 4096, 128, "causal"),  # a speculative verify
    ),
    # The server and batch_generate: always with a bool mask.
    "batch": (
        _w(4, 32, 8, 1, 2048, 128, "bool"),
        _w(8, 32, 8, 1, 1024, 128, "bool"),
        _w(8, 32, 8, 1, 4096, 128, "bool"),
        _w(8, 16, 8, 1, 2048, 128, "bool"),
        _w(32, 32, 8, 1, 2048, 128, "bool"),
    ),
    "long": (
        _w(1, 16, 8, 1, 16384, 128),
        _w(1, 32, 8, 1, 32768, 128),
        _w(1, 16, 8, 1, 65536, 128),
    ),
    # --kv-bits 4 and 8.
    "quantized": tuple(
        _w(*shape, kv_bits=bits)
        for bits in (4, 8)
        for shape in (
            (1, 16, 8, 1, 1024, 128),
            (1, 16, 8, 1, 4096, 128),
            (1, 16, 8, 1, 16384, 128),
            (1, 32, 8, 1, 4096, 64),
        )
    ),
    # Their prompts, chunk by chunk.
    "quantized-prompt": (
        *(_w(1, 16, 8, 2048, n, 128, "causal", kv_bits=4) for n in (2048, 8192)),
        _w(1, 32, 8, 2048, 4096, 64, "causal", kv_bits=4),
        _w(1, 16, 8, 2048, 4096, 128, "causal", kv_bits=8),
    ),
    # Head sizes that MLX has no fused kernel for everywhere.
    "wide": (
        *(_w(1, 8, 4, 1, n, 256) for n in (1024, 4096, 16384)),
        *(_w(1, 16, 2, 1, n, 512) for n in (1024, 4096, 16384)),
        _w(1, 8, 4, 2048, 4096, 256, "causal"),
    ),
    # MLA: keys and values are one array.
    "latent": tuple(
        _w(1, heads, 1, 1, n, 512, "additive", latent=True)
        for heads in (16, 128)
        for n in (1024, 4096, 16384)
    ),
    # Steps of speculative decoding.
    "verify": (
        *(_w(1, 16, 8, 8, n, 128, "causal") for n in (1024, 4096, 16384)),
        _w(1, 32, 8, 8, 4096, 128, "causal"),
        _w(1, 32, 8, 8, 4096, 64, "causal"),
        _w(1, 16, 8, 32, 4096, 128, "causal"),
    ),
    "sdpa-grid": tuple(dict.fromkeys(_grid())),
}

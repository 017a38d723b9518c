"""Suites of attention workloads by name, for the search and the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .workload import Bucket, Workload

__all__ = ["LAYOUTS", "LENGTHS", "OTHERS", "SUITES"]

LENGTHS = tuple(1 << n for n in range(8, 16))  # the buckets from 256 keys to 32k

# Query heads, KV heads and head size of the most used models. Verdicts are for one layout and one
# bucket: a suite that skipped one would leave a model without a kernel there.
LAYOUTS = (
    (16, 8, 128),  # Qwen3-0.6B, 1.7B
    (32, 8, 128),  # Llama-3.1-8B, Mistral-7B, Qwen3-4B, 8B
    (32, 8, 64),  # Llama-3.2-1B
    (24, 8, 128),  # Llama-3.2-3B
    (28, 4, 128),  # Qwen2.5-7B
)
OTHERS = (
    (40, 8, 128),  # Qwen3-14B, Qwen2.5-14B, 32B
    (32, 4, 128),  # Qwen3-30B-A3B
    (14, 2, 64),  # Qwen2.5-0.5B
)


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
    sinks: bool = False,
    kv_bits: int = 0,
    latent: bool = False,
) -> Bucket:
    shape = (batch, q_heads, kv_heads, q_len, kv_len, head_dim, head_dim)
    group = 64 if kv_bits else 0
    w = Workload(*shape, dtype, mask, sinks, kv_bits=kv_bits, kv_group=group, latent=latent)
    return w.bucket()


def _all(
    layouts: Iterable[tuple[int, int, int]],
    mask: str = "none",
    *,
    batch: int = 1,
    q_len: int = 1,
    lengths: Sequence[int] = LENGTHS,
    sinks: bool = False,
    kv_bits: int = 0,
    latent: bool = False,
) -> list[Bucket]:
    """Every layout at every length."""
    return [
        _w(batch, q, kv, q_len, n, dim, mask, sinks=sinks, kv_bits=kv_bits, latent=latent)
        for q, kv, dim in layouts
        for n in lengths
    ]


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
    # One sequence being continued, short to long context, and one speculative step.
    "decode": (*_all(LAYOUTS), _w(1, 16, 8, 8, 4096, 128, "causal")),
    # The server and batch_generate: always with a bool mask.
    "batch": (
        *_all(LAYOUTS, "bool", batch=8),
        _w(4, 32, 8, 1, 2048, 128, "bool"),
        _w(32, 32, 8, 1, 2048, 128, "bool"),
    ),
    "long": (
        _w(1, 16, 8, 1, 16384, 128),
        _w(1, 32, 8, 1, 32768, 128),
        _w(1, 16, 8, 1, 65536, 128),
    ),
    "decode-others": tuple(_all(OTHERS)),
    # --kv-bits 4 and 8.
    "quantized": (*_all(LAYOUTS, kv_bits=4), *_all(LAYOUTS, kv_bits=8)),
    # Their prompts, chunk by chunk.
    "quantized-prompt": (
        *(_w(1, 16, 8, 2048, n, 128, "causal", kv_bits=4) for n in (2048, 8192)),
        _w(1, 32, 8, 2048, 4096, 64, "causal", kv_bits=4),
        _w(1, 16, 8, 2048, 4096, 128, "causal", kv_bits=8),
    ),
    # Head sizes that MLX has no fused kernel for everywhere: Gemma 3 and 4.
    "wide": (
        *_all(((8, 4, 256), (16, 2, 512))),
        _w(1, 8, 4, 2048, 4096, 256, "causal"),
    ),
    # gpt-oss: all keys, and a window of 128.
    "sinks": (
        *_all(((64, 8, 64),), sinks=True),
        *(_w(1, 64, 8, 1, 128, 64, mask, sinks=True) for mask in ("none", "bool")),
    ),
    # MLA: keys and values are one array.
    "latent": tuple(_all(((16, 1, 512), (20, 1, 512), (128, 1, 512)), "additive", latent=True)),
    # Steps of speculative decoding.
    "verify": (*_all(LAYOUTS, "causal", q_len=8), _w(1, 16, 8, 32, 4096, 128, "causal")),
    "sdpa-grid": tuple(dict.fromkeys(_grid())),
}

"""Serving the tiny model's decode on the host backend: verdicts, calls as mlx-lm makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

import mlx_lm_openevolve
from mlx_lm_openevolve.ops.attention.workload import Workload

__all__ = ["BUCKETS", "attention", "close", "enable", "hits"]

BUCKETS = [Workload(1, 4, 2, 1, n, 64, 64, "bfloat16") for n in (1, 2, 4, 8, 16, 32, 64, 128)]


def enable() -> dict[str, Any]:
    return mlx_lm_openevolve.enable_optimizations(
        backend="host", gate="stored", require_faster=False
    )


def attention(
    q_len: int = 1, kv_len: int = 20, dtype: mx.Dtype = mx.bfloat16, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """Arguments of a call as mlx-lm makes it: keys and values are slices of a longer buffer."""
    key = mx.random.key(seed)
    q, k, v = (
        mx.random.normal((1, heads, n, 64), key=part).astype(dtype)
        for heads, n, part in zip(
            (4, 2, 2), (q_len, 256, 256), mx.random.split(key, 3), strict=True
        )
    )
    call = {
        "queries": q,
        "keys": k[:, :, :kv_len],
        "values": v[:, :, :kv_len],
        "cache": KVCache(),
        "scale": 0.125,
        "mask": None,
    }
    return call | changes


def close(a: mx.array, b: mx.array, limit: float = 0.01) -> bool:
    """Within the rounding of bfloat16, as a whole: wrong attention is off by tens of percent."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return (mx.linalg.norm(a - b) / mx.linalg.norm(b)).item() < limit


def hits() -> int:
    workloads = mlx_lm_openevolve.get_optimization_info()["workloads"]
    return sum(row["hits"] for row in workloads.values())


def fallbacks(family: str) -> dict[str, int]:
    """Calls of a family that no workload describes: reason -> count."""
    found: dict[str, int] = mlx_lm_openevolve.get_optimization_info()["ops"][family]["fallbacks"]
    return found


def same(cls: Any, call: Callable[[], mx.array], limit: float) -> bool:
    """Whether a call gives with the patched `__call__` of a class what it gives with its own."""
    ours = call()
    mx.eval(ours)
    patched = cls.__call__
    cls.__call__ = patched.__wrapped__
    try:
        want = call()
        mx.eval(want)
    finally:
        cls.__call__ = patched
    return ours.shape == want.shape and ours.dtype == want.dtype and close(ours, want, limit)

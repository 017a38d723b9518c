"""Numbers, and how near those of two ways of rounding must lie."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

__all__ = ["ULP", "close", "drawn"]

# Units in the last place by which two roundings of nearly one number may differ.
ULP = {mx.float32: 2.0**-20, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


def close(a: mx.array, b: mx.array) -> bool:
    x, y = (np.array(v.astype(mx.float32)) for v in (a, b))
    bound = ULP[b.dtype] * np.maximum(np.abs(y), 1.0)
    return a.dtype == b.dtype and x.shape == y.shape and bool(np.all(np.abs(x - y) <= 2 * bound))


def drawn(seed: int, *shape: int, dtype: mx.Dtype = mx.float32, by: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape) * by).astype(dtype)

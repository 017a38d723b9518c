"""mlx-lm's attention where whole models are compared: in float32, or over a dequantised cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import quantized

__all__ = ["dequantised", "in_float32"]

Attention = Callable[..., mx.array]


def dequantised(original: Attention) -> Attention:
    """mlx-lm's attention over the values that a quantised cache stands for."""

    def attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
        read: Callable[[quantized.Packed, int, int], mx.array] = quantized.floats,
    ) -> mx.array:
        if bits := getattr(cache, "bits", 0):
            keys, values = (read(x, bits, cache.group_size) for x in (keys, values))
            cache = None
        return original(queries, keys, values, cache, scale, mask, sinks)

    return attention


def in_float32(original: Attention) -> Attention:
    """mlx-lm's attention with everything in float32 but its result."""

    def up(x: Any) -> Any:
        known = isinstance(x, mx.array) and x.dtype != mx.bool_
        return x.astype(mx.float32) if known else x

    def attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        raised = map(up, (queries, keys, values))
        out = dequantised(original)(
            *raised, cache, scale, up(mask), up(sinks), read=quantized.exact
        )
        return out.astype(queries.dtype)

    return attention

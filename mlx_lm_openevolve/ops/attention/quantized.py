"""Quantised KV caches: what mlx-lm hands over, and what serves it where no kernel does.

Keys and values are 3-tuples (words, scales, biases) as mx.quantize makes them: words uint32
[B, Hkv, N, D * bits / 32], scales and biases [B, Hkv, N, D / group] in the activations' dtype.

mlx-lm computes such attention by two quantized_matmuls and a softmax. MLX's CUDA backend has no
quantized_matmul for slices of a cache (mlx 0.32.4: RuntimeError, "No implementation for problem
shape"); there the baseline, and what serves a call without a kernel, is dequantise + SDPA.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .workload import Workload

__all__ = ["Packed", "dequantised", "exact", "floats", "layout", "stock", "stock_runs"]

Packed = Sequence[mx.array]


def layout(head_dim: int, keys: Packed, values: Packed) -> tuple[int, int, int] | str:
    """(bits, group, width of a value) of quantised keys and values, or why they are not the
    affine quantisation that a kernel could read."""
    if len(keys) != 3 or len(values) != 3:
        return "keys and values are not (words, scales, biases)"
    words, scales, biases = keys
    if words.ndim != 4 or scales.ndim != 4 or words.dtype != mx.uint32:
        return "quantised keys are not words of four axes"
    bits, rest = divmod(words.shape[3] * 32, head_dim)
    group, odd = divmod(head_dim, scales.shape[3])
    if rest or odd or not 0 < bits <= 8:
        return "quantised keys do not fit the queries"
    v_head_dim, rest = divmod(values[0].shape[3] * 32, bits)
    for some in (keys, values):
        if some[1].shape != some[2].shape or some[0].shape[:3] != some[1].shape[:3]:
            return "words, scales and biases differ in shape"
        if some[1].dtype != biases.dtype or some[2].dtype != biases.dtype:
            return "scales and biases differ in dtype"
    if rest or values[1].shape[3] * group != v_head_dim:
        return "keys and values are quantised differently"
    return bits, group, v_head_dim


def floats(packed: Packed, bits: int, group: int) -> mx.array:
    """The values that quantised ones stand for, in the dtype of their scales."""
    words, scales, biases = packed
    return mx.dequantize(words, scales, biases, group_size=group, bits=bits)


def exact(packed: Packed, bits: int, group: int) -> mx.array:
    """The values that quantised ones stand for, in float32."""
    words, scales, biases = packed
    return floats((words, scales.astype(mx.float32), biases.astype(mx.float32)), bits, group)


def dequantised(
    queries: mx.array,
    keys: Packed,
    values: Packed,
    scale: float,
    mask: Any,
    bits: int,
    group: int,
) -> mx.array:
    """Attention by dequantise + SDPA, which runs on every backend. mask as mlx-lm passes it."""
    return mx.fast.scaled_dot_product_attention(
        queries,
        floats(keys, bits, group),
        floats(values, bits, group),
        scale=scale,
        mask=mask,
    )


def stock(
    queries: mx.array,
    keys: Packed,
    values: Packed,
    scale: float,
    mask: Any,
    bits: int,
    group: int,
) -> mx.array:
    """mlx-lm's own quantised attention. It scales `queries` in place: it gets an array of its
    own, or a repeated call would compound the scale."""
    from mlx_lm.models.base import quantized_scaled_dot_product_attention

    answer: mx.array = quantized_scaled_dot_product_attention(
        mx.array(queries), keys, values, scale=scale, mask=mask, group_size=group, bits=bits
    )
    return answer


def stock_runs(workload: Workload) -> bool:
    """Whether mlx-lm's own quantised attention runs here on slices of a cache: tried once, on a
    few keys, for each kind of workload."""
    w = workload
    kind = (w.kv_bits, w.kv_group, w.head_dim, w.v_head_dim, w.dtype, w.group, w.q_len > 1)
    return _tried(*kind)


@functools.cache
def _tried(
    bits: int, group: int, head_dim: int, v_head_dim: int, dtype: str, heads: int, many: bool
) -> bool:
    kind: mx.Dtype = getattr(mx, dtype)

    def cached(width: int) -> Packed:
        packed = mx.quantize(mx.ones((1, 2, 64, width), kind), group_size=group, bits=bits)
        return tuple(array[:, :, :37] for array in packed)

    try:
        queries = mx.ones((1, 2 * heads, 16 if many else 1, head_dim), kind)
        mx.eval(stock(queries, cached(head_dim), cached(v_head_dim), 1.0, None, bits, group))
    except (RuntimeError, ValueError):
        return False
    return True

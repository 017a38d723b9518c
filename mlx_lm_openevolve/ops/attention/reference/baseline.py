"""What kernels are compared with on a device: MLX's SDPA, or what mlx-lm runs in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from .. import quantized
from ..workload import Workload

__all__ = ["answer", "baseline_name", "floats", "mass", "sdpa", "sizes"]


def baseline_name(workload: Workload) -> str:
    """What `sdpa` is for a workload."""
    if not workload.kv_bits:
        return "mx.fast.scaled_dot_product_attention"
    if quantized.stock_runs(workload):
        return "mlx-lm's quantized_scaled_dot_product_attention"
    return "dequantise + SDPA, since mlx-lm's quantised attention does not run here"


def sdpa(workload: Workload, fixed: float | None = None) -> Callable[..., mx.array]:
    """What mlx-lm runs, as a Call for a workload: the baseline of every comparison. MLX's own
    attention; on a quantised cache mlx-lm's, or dequantise + SDPA where that does not run.

    A Call is handed its scale as an array; `fixed` is that number where it is known beforehand,
    as mlx-lm knows it, so that the baseline pays nothing for reading it."""
    causal = workload.mask == "causal"
    bits, group = workload.kv_bits, workload.kv_group
    packed = None
    if bits:
        packed = quantized.stock if quantized.stock_runs(workload) else quantized.dequantised

    def call(
        queries: mx.array,
        keys: Any,
        values: Any,
        scale: mx.array | float,
        mask: mx.array | None,
        sinks: mx.array | None,
    ) -> mx.array:
        number = fixed
        if number is None:
            number = scale if isinstance(scale, float) else float(np.array(scale)[0])
        if packed is not None:
            own_masks = mask is not None and mask.ndim == 4 and mask.shape[1] > 1
            # mlx-lm's own takes no mask of its own for every head.
            serve = quantized.dequantised if own_masks else packed
            return serve(queries, keys, values, number, "causal" if causal else mask, bits, group)
        return mx.fast.scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=number,
            mask="causal" if causal else mask,
            sinks=sinks,
        )

    return call


def answer(workload: Workload, queries: mx.array, keys: Any, values: Any, *rest: Any) -> mx.array:
    """The answer that others are compared with, [B, Hq, L, Dv]: SDPA's. On a quantised cache by
    SDPA in float32: mlx-lm's own there errs by whole values on peaked logits (bfloat16 on a CPU),
    as it keeps scores and products in the activations' dtype."""
    if not workload.kv_bits:
        k = whole(keys)
        v = k if keys is values else whole(values)
        return sdpa(workload)(whole(queries), k, v, *rest)
    plain = replace(workload, latent=False, kv_bits=0, kv_group=0)
    k, v = floats(workload, keys), floats(workload, values)
    return sdpa(plain)(queries.astype(mx.float32), k, v, *rest)


def mass(workload: Workload, queries: mx.array, keys: Any, values: Any, *rest: Any) -> mx.array:
    """The sum of p |v| for every element of the answer, by SDPA: the unit of errors."""
    plain = replace(workload, latent=False, kv_bits=0, kv_group=0)
    k = whole(floats(workload, keys))
    return sdpa(plain)(whole(queries.astype(k.dtype)), k, sizes(workload, values), *rest)


def whole(x: mx.array) -> mx.array:
    """On CUDA a copy of a slice: where keys and values lie differently in memory cuDNN's kernel in
    MLX 0.32.4 reads beyond them (seen with compute-sanitizer). A model's lie alike, and its queries
    lie as models make them."""
    on_cuda = hasattr(mx, "cuda") and mx.cuda.is_available()
    return mx.contiguous(x) if on_cuda else x


def sizes(workload: Workload, values: Any) -> mx.array:
    """|v|, [B, Hkv, N, Dv]. A quantised value counts with its step too: quantised zeros are what
    rounding left of a scale and a bias."""
    size = mx.abs(floats(workload, values))
    if workload.kv_bits:
        size = size + mx.repeat(mx.abs(values[1].astype(mx.float32)), workload.kv_group, axis=-1)
    return size


def floats(workload: Workload, x: Any) -> mx.array:
    """Keys or values as plain numbers: in float32 where they are quantised."""
    if not workload.kv_bits:
        plain: mx.array = x
        return plain
    return quantized.exact(x, workload.kv_bits, workload.kv_group)

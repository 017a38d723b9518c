"""What an attention kernel reads: the arrays of a Call by their names.

A Call of this family takes (queries, keys, values, scale, mask, sinks, length=None): the arrays as
mlx-lm passed them (keys and values of a quantised cache are 3-tuples), scale a float32 array of one
element, mask and sinks an array or None. With `length`, an int32 array of one element, keys and
values are whole buffers of which so many keys count. It returns [B, Hq, L, Dv].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..base import Absent, as_given
from .workload import Workload

__all__ = ["INPUTS", "Operand", "absent", "bind", "key_count", "required"]

Operand = mx.array | Sequence[mx.array]  # keys or values: an array, or a quantised cache's three

# By variant. `length` is for kernels that are given whole buffers; in a latent cache `values` are
# the keys.
INPUTS = {
    "float": ("queries", "keys", "values", "scale", "mask", "sinks", "length"),
    "quantized": (
        *("queries", "keys", "key_scales", "key_biases"),
        *("values", "value_scales", "value_biases", "scale", "mask", "length"),
    ),
    "latent": ("queries", "keys", "values", "scale", "mask", "sinks", "length"),
}


def absent(workload: Workload) -> Mapping[str, Absent]:
    """The inputs that a workload lacks."""
    inputs = {}
    if workload.mask not in ("bool", "additive"):
        inputs["mask"] = Absent("bool_", 4)
    if not workload.sinks and "sinks" in INPUTS[workload.variant]:
        inputs["sinks"] = Absent(workload.dtype, 1)
    return inputs


def required(workload: Workload) -> frozenset[str]:
    """The inputs that a kernel must read to be right."""
    optional = {"length", "values"} if workload.latent else {"length"}
    return frozenset(INPUTS[workload.variant]) - absent(workload).keys() - optional


def key_count(keys: Any) -> int:
    """The number of keys of an array, or of a quantised cache's words."""
    count: int = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    return count


def bind(
    workload: Workload, names: frozenset[str], *, broadcast: bool
) -> Callable[..., list[mx.array | None]]:
    """See Op.bind. An additive mask comes in the workload's dtype; with broadcast=False a mask of
    one to four axes is handed over as it is."""
    packed, wants_length = workload.kv_bits > 0, "length" in names
    masked, additive = workload.mask in ("bool", "additive"), workload.mask == "additive"
    dtype: mx.Dtype = getattr(mx, workload.dtype)
    rows = (workload.batch, workload.q_heads, workload.q_len)

    def arrays(
        queries: mx.array,
        keys: Any,
        values: Any,
        scale: mx.array,
        mask: mx.array | None,
        sinks: mx.array | None,
        length: mx.array | None = None,
    ) -> list[mx.array | None]:
        if not masked:
            mask = None
        elif mask is not None:
            if additive:
                mask = mask.astype(dtype)
            if broadcast or not 0 < mask.ndim <= 4:
                mask = mx.broadcast_to(mask, (*rows, key_count(keys)))
        if wants_length and length is None:
            length = mx.array([key_count(keys)], mx.int32)
        if packed:
            made = [queries, *keys, *values, scale, mask]
        else:
            made = [queries, keys, values, scale, mask, sinks]
        return [*made, length] if wants_length else made

    return arrays if masked or packed or wants_length else as_given

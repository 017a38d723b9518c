"""Merged products: layers that take the same input become one product, and its parts.

    q_proj, k_proj, v_proj --joined--> one weight [Nq + Nk + Nv, K], one product, split
    gate_proj, up_proj of E experts --joined--> one weight [2 E, N, K], of twice as many experts

The joined arrays own the memory; what the separate layers hold becomes views of their rows. So a
model's parameters are what they were: they can be saved, loaded over, packed and adapted, and long
inputs run on the separate layers as ever.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

__all__ = ["Merged", "alike", "release"]

# What is joined, with all that such a layer may hold.
_KEYS: dict[Any, set[str]] = {
    Linear: {"weight", "bias"},
    QuantizedLinear: {"weight", "scales", "biases", "bias"},
    QuantizedSwitchLinear: {"weight", "scales", "biases", "bias"},
}
_PACKING = ("bits", "group_size", "mode")
# Bytes that MLX may keep of what was let go: to give back each layer's by itself takes time.
_SPARE = 256 << 20


def release(spare: int = _SPARE) -> None:
    """Let MLX give back what it keeps for arrays to come, where that is more than so many bytes."""
    if mx.get_cache_memory() > spare:
        mx.clear_cache()


def alike(modules: Iterable[Any]) -> list[list[Any]]:
    """Those whose products can be one, two or more together: of one kind, packing and dtype, and
    neither adapted nor sharded."""
    found: dict[Any, list[Any]] = {}
    for module in modules:
        if set(module) <= _KEYS.get(type(module), set()):
            packing = [getattr(module, key, None) for key in _PACKING]
            held = [(key, a.shape[1:], str(a.dtype)) for key, a in sorted(module.items())]
            found.setdefault(repr((type(module), packing, held)), []).append(module)
    return [group for group in found.values() if len(group) > 1]


class Merged:
    """The products of several layers as one: `product`, a layer that takes `width` numbers; where
    its outputs, or its experts, were those of another layer: `ends`."""

    def __init__(self, modules: Sequence[Any]) -> None:
        """Join what the modules hold, and put views in its place. Raises what `mx.eval` raises,
        with nothing changed: ValueError where they are traced, RuntimeError where memory does not
        hold a copy of them."""
        first = modules[0]
        joined = {key: mx.concatenate([module[key] for module in modules]) for key in first}
        mx.eval(joined)
        # Of an input: packed weights hold several in a word.
        self.width = first["weight"].shape[-1] * 32 // getattr(first, "bits", 32)
        *self.ends, _ = itertools.accumulate(module["weight"].shape[0] for module in modules)
        views = [mx.split(joined[key], self.ends) for key in joined]
        mx.eval(views)
        self.product = copy.copy(first)
        dict.update(self.product, joined)
        # Weakly, and by id: to hold them would keep alive what the model has replaced.
        self._views: list[tuple[weakref.ref[Any], str, int]] = []
        for key, parts in zip(joined, views, strict=True):
            for module, part in zip(modules, parts, strict=True):
                module[key] = part
                self._views.append((weakref.ref(module), key, id(part)))

    def undo(self) -> None:
        """Give the separate layers arrays of their own again, where they hold views still."""
        for ref, key, view in self._views:
            module = ref()
            if module is not None and id(module.get(key)) == view:
                own = mx.contiguous(module[key])
                mx.eval(own)  # before another thread may meet it
                module[key] = own
        self._views.clear()

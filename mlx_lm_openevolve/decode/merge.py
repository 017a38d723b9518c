"""Merged products: the layers that read the same input become one product, and its parts.

    layer's q_proj, k_proj, v_proj --joined--> one weight [Nq + Nk + Nv, K], one product, split

The joined arrays own the memory; what the separate layers hold becomes views of their rows. So a
model's parameters are what they were: they can be saved, loaded over, packed and adapted, and long
inputs run on the separate layers as ever. A layer that holds other modules or arrays than those
that were joined runs on its own, from that very call on. What is changed in place
(`layer.weight[:] = 0`, and `layer.scales *= 2`, which leaves the same array there) is not seen:
assign another array.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

__all__ = ["Merged", "Merges", "release", "why_not"]

# What is joined, with all that such a layer may hold.
_KEYS: dict[Any, set[str]] = {
    Linear: {"weight", "bias"},
    QuantizedLinear: {"weight", "scales", "biases", "bias"},
}
_PACKING = ("bits", "group_size", "mode")
# Bytes that MLX may keep of what was let go: to give back each layer's by itself takes time.
_SPARE = 256 << 20


def release(spare: int = 0) -> None:
    """Let MLX give back what it keeps for arrays to come, where that is more than so many bytes."""
    if mx.get_cache_memory() > spare:
        mx.clear_cache()


def why_not(layer: Any, names: Sequence[str]) -> str:
    """Why products of a layer cannot be one, "" where they can: they are adapted or sharded, or
    differ in packing, dtype or input."""
    modules = [layer.get(name) for name in names]
    first = modules[0]
    keys = _KEYS.get(type(first), set())
    for name, module in zip(names, modules, strict=True):
        kind = type(module)
        if kind not in _KEYS:
            return f"{name} is {kind.__module__}.{kind.__qualname__}"
        if kind is not type(first) or not set(module) <= keys or set(module) != set(first):
            return f"{name} is another kind of layer than {names[0]}"
        if any(getattr(module, key, None) != getattr(first, key, None) for key in _PACKING):
            return f"{name} is packed otherwise than {names[0]}"
        if any(a.shape[1:] != first[key].shape[1:] for key, a in module.items()):
            return f"{name} takes another input than {names[0]}"
        if any(a.dtype != first[key].dtype for key, a in module.items()):
            return f"{name} has another dtype than {names[0]}"
    return ""


class Merged:
    """The products of one layer as one. sizes: how large an input is that it serves; owner: the
    model's id."""

    __slots__ = ("__weakref__", "_alive", "ends", "held", "names", "owner", "product", "sizes")

    def __init__(self, layer: Any, names: Sequence[str], rows: Iterable[int], owner: int) -> None:
        """Join what the layer's modules hold, and put views in its place. Raises what `mx.eval`
        raises, with nothing changed: ValueError where they are traced, RuntimeError where memory
        does not hold a copy of them."""
        modules: list[Any] = [layer[name] for name in names]
        first = modules[0]
        joined = {key: mx.concatenate([module[key] for module in modules]) for key in first}
        mx.eval(joined)
        *ends, _ = itertools.accumulate(module["weight"].shape[0] for module in modules)
        views = [mx.split(joined[key], ends) for key in joined]
        mx.eval(views)

        self.product = copy.copy(first)
        dict.update(self.product, joined)
        width = first["weight"].shape[-1]
        if isinstance(first, QuantizedLinear):
            width = width * 32 // first.bits
        self.names, self.ends, self.owner = names, ends, owner
        self.sizes = frozenset(width * n for n in rows)
        for key, parts in zip(joined, views, strict=True):
            for module, part in zip(modules, parts, strict=True):
                module[key] = part
        # By id: to hold them would keep alive what the model has replaced. `watch` says when one
        # of them dies, so that no other takes its id.
        self.held = [
            (name, id(module), [(key, id(module[key])) for key in joined])
            for name, module in zip(names, modules, strict=True)
        ]
        self._alive: list[Any] = []

    def of(self, layer: Any) -> bool:
        """Whether the layer holds what was joined, still."""
        try:
            for name, module_id, arrays in self.held:
                module = layer[name]
                if id(module) != module_id or len(module) != len(arrays):  # a bias came
                    return False
                for key, array_id in arrays:
                    if id(module[key]) != array_id:
                        return False
        except KeyError:
            return False
        return True

    def watch(self, layer: Any, died: Callable[[Any], None]) -> None:
        """Call `died` when the model lets go of anything that was joined."""
        modules = [layer[name] for name in self.names]
        watched = [*modules, *(module[key] for module in modules for key in self.product)]
        self._alive = [weakref.ref(one, died) for one in watched]

    def undo(self, layer: Any) -> None:
        """Give the separate layers arrays of their own again, where they hold views still."""
        self._alive.clear()
        for name, module_id, arrays in self.held:
            module = layer.get(name)
            for key, array_id in arrays if id(module) == module_id else ():
                if id(module.get(key)) == array_id:
                    own = mx.contiguous(module[key])
                    mx.eval(own)  # before another thread may meet it
                    module[key] = own


class Merges:
    """What is merged, by the id of its layer. changed: called with the owner of a layer that holds
    something else by now."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        self.of: dict[int, Merged] = {}
        self._changed = changed

    def add(self, layer: Any, names: Sequence[str], rows: Iterable[int], owner: int) -> None:
        """Merge a layer's products for inputs of so many rows. Raises what Merged does."""
        key = id(layer)
        self.of.pop(key, None)
        merged = Merged(layer, names, rows, owner)
        release(_SPARE)  # the separate arrays, which no one holds now

        known = weakref.ref(merged)

        def died(_: Any) -> None:
            if self.of.get(key) is known():
                self.of.pop(key, None)
                self._changed(owner)

        merged.watch(layer, died)
        self.of[key] = merged
        weakref.finalize(layer, self.of.pop, key, None)

    def drop(self, layer: Any, owner: int) -> None:
        """Arrays of their own again for a layer that was merged for this model."""
        merged = self.of.get(id(layer))
        if merged is not None and merged.owner == owner:
            del self.of[id(layer)]
            merged.undo(layer)
            del merged
            release(_SPARE)

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A `__call__(layer, x, ...)` that runs the very same body, with the parts of one product
        in place of those layers where they are merged for so large an x."""
        merges, changed = self.of, self._changed

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            merged = merges.get(id(self))
            if merged is None or not args or self._training:
                return original(self, *args, **kwargs)
            x = args[0]
            if getattr(x, "size", 0) not in merged.sizes:
                return original(self, *args, **kwargs)
            if not merged.of(self):
                changed(merged.owner)
                return original(self, *args, **kwargs)
            parts: Any = mx.split(merged.product(x), merged.ends, axis=-1)
            return original(_with(self, merged.names, parts), *args, **kwargs)

        return call


def _with(layer: Any, names: Sequence[str], parts: Sequence[mx.array]) -> Any:
    """The layer as it is at this call, but for these of its modules, which return a part."""
    twin = dict.__new__(layer.__class__)
    dict.update(twin, layer)
    vars(twin).update(vars(layer))
    for name, part in zip(names, parts, strict=True):
        twin[name] = lambda _, part=part: part
    return twin

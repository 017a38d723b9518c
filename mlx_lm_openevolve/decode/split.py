"""A model's layer for one token, in two compiled functions around its cache and its attention.

    x, offset -> before -> queries, keys, values -> the cache's update_and_fetch -> attention
              -> after -> what the layer returns

What a layer does there is seen when it is run on stand-ins (look.py). Between the two functions the
caches stay mlx-lm's own, of any kind and length, so nothing is traced anew while they grow. Layers
that differ in their arrays alone share the two functions, which take the arrays: MLX walks through
one trace for all of them, which stays in the CPU's caches.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..errors import BackendError
from ..runtime.patch import swapping
from .fusing import Fusing
from .look import (
    ATTENTION,
    Called,
    Part,
    Run,
    Seen,
    Trace,
    as_array,
    held,
    method_of,
    result,
    stock,
)
from .routing import UNSORTED

__all__ = ["Split", "kernels_of", "kind", "wholes"]


def _twin(module: Any, known: dict[int, Any]) -> Any:
    """A layer like this one, of layers of its own."""
    if id(module) not in known:
        known[id(module)] = twin = copy.copy(module)
        for key, value in module.items():
            if isinstance(value, Module):
                dict.__setitem__(twin, key, _twin(value, known))
    return known[id(module)]


def kind(
    modules: Sequence[Any],
    seen: Seen,
    parts: Mapping[int, Part],
    kernels: Mapping[int, Any],
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What layers have in common that share a Split: all but the values of their arrays. In two
    lists, the second of attributes, which may be of any kind."""
    place = {id(module): i for i, module in enumerate(modules)}
    place |= {id(whole): -1 - i for i, whole in enumerate(wholes(parts))}
    arrays = {id(a): (place[id(m)], key) for m in modules for key, a in m.items()}

    def said(value: Any) -> Any:
        if isinstance(value, mx.array):
            return value.shape, value.dtype
        return type(value) if isinstance(value, Module) else value

    space, fixed, masked = seen.attention
    return [
        *((place[id(m)], type(m), [(k, said(v)) for k, v in m.items()]) for m in modules),
        (id(space), {name: arrays.get(id(value), value) for name, value in fixed.items()}, masked),
        {place[key]: (place[id(p.product)], p.ends, p.place) for key, p in parts.items()},
        {place[key]: (kernel.func, *map(id, kernel.args)) for key, kernel in kernels.items()},
    ], [dict(vars(module)) for module in modules]


def kernels_of(seen: Seen, parts: Mapping[int, Part]) -> dict[int, Run]:
    """By the id of a layer the kernel that makes its product by now, in place of MLX's."""
    found: dict[int, Run] = {}
    for module, given in seen.calls:
        part = parts.get(id(module))
        asked, taken = (module, given) if part is None else (part.product, part.given(given))
        served = method_of(asked, "served")
        kernel = served(asked, *taken) if served is not None else None
        if kernel is not None:
            found[id(asked)] = kernel
    return found


def wholes(parts: Mapping[int, Part]) -> list[Any]:
    """The products that stand for several, each once."""
    return [*{id(part.product): part.product for part in parts.values()}.values()]


def _arrays_of(modules: Sequence[Any], parts: Mapping[int, Part]) -> Any:
    """What picks the arrays that a Split takes from all that a layer's modules hold."""
    places = (id(module) not in parts for module in modules for _ in module)
    pairs = zip(held(modules), places, strict=True)
    found = [i for i, (v, own) in enumerate(pairs) if own and isinstance(v, mx.array)]
    if len(found) > 1:
        return itemgetter(*found)
    return lambda values: tuple(values[i] for i in found)


class Split:
    """The two halves of a layer, `first` and `last`, compiled for an x and an offset like these,
    and for all layers of its kind. parts: by the id of each layer whose product is made together
    with others, where it is found; kernels: by the id of a layer, what makes its product; fuses:
    with the kernels of fused.py; unsorted: rows of experts stay as they come. Raises what the layer
    raises where it is traced: it may evaluate an array."""

    __slots__ = ("_fixed", "_joints", "_own", "_space", "after", "before", "first", "last", "pick")

    def __init__(
        self,
        layer: Any,
        run: Run,
        seen: Seen,
        parts: Mapping[int, Part],
        kernels: Mapping[int, Run],
        x: mx.array,
        offset: int | mx.array,
        fuses: bool,
        unsorted: bool,
    ) -> None:
        self._space, self._fixed, masked = seen.attention
        modules = layer.modules()
        self.pick = _arrays_of(modules, parts)  # from all that a layer of this kind holds
        own = self.pick(held(modules))
        self._own = {
            name: next(i for i, a in enumerate(own) if a is value)
            for name, value in self._fixed.items()
            if isinstance(value, mx.array)
        }
        # No layer's own: the twin holds arrays while it is traced alone.
        known: dict[int, Any] = {}
        twin = _twin(layer, known)
        twins = {id(known[key]): key for key in known}
        places = [(known[id(m)], key) for m in modules for key in m]
        slots = self.pick(places)
        products = {id(whole): copy.copy(whole) for whole in wholes(parts)}
        joined = [(product, key) for product in products.values() for key in product]
        for module, key in (*places, *joined):
            if isinstance(module[key], mx.array):
                dict.__setitem__(module, key, None)

        def called(fusing: Fusing) -> Called:
            made: dict[int, tuple[Any, list[mx.array]]] = {}

            def product(original: Run, module: Any, key: int, *given: Any, **named: Any) -> Any:
                kernel = kernels.get(key)
                if unsorted:
                    named.pop("sorted_indices", None)
                if kernel is not None:
                    with contextlib.suppress(BackendError, ValueError):  # no kernel while tracing
                        return kernel(module, *given, **named)
                return stock(original)(module, *given, **named)

            def call(original: Run, module: Any, *given: Any, **named: Any) -> Any:
                key = twins.get(id(module), 0)
                part = parts.get(key)
                if part is None:
                    return product(original, module, key, *given, **named)
                of, outs = made.get(id(part.product), ((), []))
                if [*map(id, of)] != [*map(id, given)]:
                    outs = split_of(original, part, given)
                    made[id(part.product)] = given, outs
                return outs[part.place]

            def split_of(original: Run, part: Part, given: tuple[Any, ...]) -> list[mx.array]:
                whole, ends = products[id(part.product)], part.ends
                if len(given) == 1:
                    out = product(original, whole, id(part.product), *given)
                    outs: list[mx.array] = [*mx.split(out, ends, axis=-1)]
                    for its, first in zip(outs, (0, *ends), strict=True):
                        fusing.part(its, out, first)
                    return outs
                both = fusing.routing.of_both(given[1], ends[0]) if len(ends) == 1 else None
                taken = part.given(given) if both is None else (given[0], both)
                out = product(original, whole, id(part.product), *taken)
                return [*mx.split(out, len(ends) + 1, axis=-3)]

            return call

        def half(arrays: Any, fusing: Fusing | None, run_half: Callable[[Trace], Any]) -> Any:
            filled = [*zip([*slots, *joined], arrays, strict=True)]
            with swapping:
                try:
                    for (module, key), array in filled:
                        dict.__setitem__(module, key, array)
                    fusing = fusing or Fusing()
                    others = [*(fusing.places if fuses else ()), *(UNSORTED if unsorted else ())]
                    return run_half(Trace(twin, run, called(fusing), others))
                finally:
                    for (module, key), _ in filled:
                        dict.__setitem__(module, key, None)

        def before(x: mx.array, offset: mx.array, arrays: Any, fusing: Fusing | None = None) -> Any:
            return half(arrays, fusing, lambda trace: trace.before(x, offset, masked))

        def after(
            x: mx.array, offset: mx.array, out: mx.array, arrays: Any, fusing: Fusing | None = None
        ) -> Any:
            return half(arrays, fusing, lambda trace: trace.after(x, offset, masked, out))

        self._compile(before, after)
        x, offset = mx.zeros(x.shape, x.dtype), as_array(offset)
        arrays = (*own, *held(wholes(parts)))
        self.last(x, offset, result(self.first(x, offset, arrays)), arrays)

    def _compile(self, before: Run, after: Run) -> None:
        self.before, self.after = before, after  # as they are traced
        self.first, self.last = mx.compile(before), mx.compile(after)
        self._joints: dict[int, tuple[Split, Any]] = {}

    def changed(self, before: Run | None = None, after: Run | None = None) -> Split:
        """Another one like this with another half."""
        split = copy.copy(self)
        split._compile(before or self.before, after or self.after)
        return split

    def attend(self, parts: Any, mask: Any, cache: Any, arrays: Any) -> mx.array:
        """What attention returns for queries, keys and values of a layer with these arrays. cache:
        updated as the layer itself would."""
        queries, keys, values = parts
        keys, values = cache.update_and_fetch(keys, values)
        fixed = self._fixed
        if self._own:
            fixed = fixed | {name: arrays[i] for name, i in self._own.items()}
        attend = self._space[ATTENTION]
        out: mx.array = attend(queries, keys, values, cache=cache, mask=mask, **fixed)
        return out

    def joint(self, other: Split) -> Any:
        """`last`, and with what it returns `first` of the layer that comes next, as one function of
        both layers' offsets and arrays: a kernel may make what the one ends and the other begins
        with. What is not asked for afterwards is never computed."""
        known = self._joints.get(id(other))
        if known is None:

            def both(x: Any, offset: Any, out: Any, arrays: Any, next_: Any, others: Any) -> Any:
                fusing = Fusing()
                y = self.after(x, offset, out, arrays, fusing)
                return y, other.before(y, next_, others, fusing)

            known = self._joints[id(other)] = other, mx.compile(both)
        return known[1]

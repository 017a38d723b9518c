"""One layer of a model that decodes with compiled layers: what it is made of, and its halves."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from ..kernels.verdict import ALL, COMPILED
from .look import PRODUCTS, Part, Seen, Unsplittable, held, look, method_of
from .merge import Merged, alike, release
from .routing import UNSORTED
from .split import Split, kernels_of, kind, wholes
from .writes import Writes

__all__ = ["Call", "Key", "Layer", "stand"]

Run = Callable[..., Any]
Key = tuple[int, type, type]  # rows, and what its mask and its cache's offset are


@dataclass(slots=True, eq=False)
class Call:
    """How a layer is called with one key: its halves, and the arrays that they take, which it holds
    while it is `live`, until one of the layer's modules is written to. then: the layer that took
    what this one returned the last time, with its key and its cache."""

    layer: Layer
    key: Key
    split: Split
    arrays: tuple[mx.array, ...]
    live: bool = True
    then: tuple[Layer, Key, weakref.ref[Any]] | None = None


class Layer:
    """One layer of a model. rows: in which of WAYS it decodes so many sequences; shared: how often
    the model's layers hold an array, by its id; known: the halves of its layers so far, by kind,
    added to; writes: tells it of what is written to its modules; changed: called when it is no
    longer made of what it was made of."""

    def __init__(
        self,
        layer: Any,
        run: Run,
        rows: Mapping[int, str],
        shared: Mapping[int, int],
        known: list[tuple[Any, Split]],
        writes: Writes,
        changed: Callable[[], None],
    ) -> None:
        self.rows, self.reason = rows, ""  # why it is left alone
        # With the arrays of merged products.
        self.splits: dict[Key, tuple[Split, list[mx.array]]] = {}
        self.merged: list[Merged] = []
        self.calls: dict[Key, Call] = {}  # that are live
        self._parts: dict[int, Part] = {}
        self._layer, self._run = weakref.ref(layer), run
        self._shared, self._known = shared, known
        self._writes, self._changed, self._state = writes, changed, object()
        self._remember(layer)

    def _remember(self, layer: Any) -> None:
        """What it is made of. Modules and arrays by id, and weakly: to hold them would keep alive
        what the model replaces. When one dies another may take its id: then all is over. Numbers in
        lists are held."""

        def died(_: Any) -> None:
            self.drop()

        modules = layer.modules()
        self._ids = [*map(id, modules)]
        self._writes.tell(self.written, self._ids)
        self._modules = [weakref.ref(module, died) for module in modules]
        values = held(modules)
        self._held = [*map(id, values)]
        self._plain: list[Any] = [vars(module) for module in modules]
        self._was = [dict(plain) for plain in self._plain]
        # For a moment other threads may see what a trace puts over the products of layers.
        self._types = [*map(type, modules)]
        classes = {*self._types} - {*PRODUCTS, type(layer)}
        self.methods = {cls: cls.__call__ for cls in classes}
        self._alive = [
            weakref.ref(value, died) if isinstance(value, mx.array | Module) else value
            for value in values
        ]

    def unchanged(self) -> list[Any] | None:
        """All that its modules hold, where it is made of the same modules, arrays, attributes and
        methods still. This reads objects that lie all over memory, too much for every layer at
        every step: what is written to a module is told, and it is asked then."""
        modules: Any = [ref() for ref in self._modules]
        try:
            values = held(modules)
            same = [*map(id, values)] == self._held and self._plain == self._was
            same = same and [*map(type, modules)] == self._types
            return values if same and stand(self.methods) else None
        except (TypeError, ValueError):  # one is dead; attributes that do not compare
            return None

    def written(self) -> None:
        """One of its modules was written to: at its next call all of it is looked at."""
        self._state = object()
        for call in [*self.calls.values()]:
            call.live = False
        self.calls.clear()

    def check(self) -> None:
        """See what was written to its modules by other ways than their methods."""
        if self.calls and self.unchanged() is None:
            self.drop()

    def call(self, key: Key) -> Call | None:
        """How it is called with a key whose halves are known; None where it was changed."""
        state, values, known = self._state, self.unchanged(), self.splits.get(key)
        if values is None or known is None:
            return None
        call = self.calls.get(key)
        if call is not None:
            return call
        split, joined = known
        call = self.calls[key] = Call(self, key, split, (*split.pick(values), *joined))
        if self._state is not state:  # by another thread, in the meantime
            self.written()
        return call

    def drop(self) -> None:
        """Forget what was seen, and say so."""
        if self._alive:
            self._forget()
            self.reason = "it was changed"
            for merged in self.merged:
                del merged.product
            self._changed()

    def _forget(self) -> None:
        self._writes.forget(self.written, self._ids)
        self._alive, self._parts = [], {}  # before arrays are let go, of whose death it would hear
        self.splits.clear()
        self.written()

    def split(self, key: Key, x: mx.array, offset: int | mx.array) -> None:
        """Find its halves for such calls as this one, unless it is left alone."""
        layer: Any = self._layer()
        masked = key[1] is mx.array
        if self.reason or key in self.splits:
            return
        if not self._alive:  # a look at it was interrupted
            self._remember(layer)
        try:
            seen = look(layer, self._run, x, offset, masked)
            way = self.rows[key[0]]
            joins, fuses, unsorted = way != COMPILED, way == ALL, False
            if joins and not self.merged:
                # What a kernel serves stays separate: its verdict is about its own shape.
                served = kernels_of(seen, {})
                dense = [group for group, given in seen.together() if len(given) == 1]
                self._merge(layer, [[m for m in g if id(m) not in served] for g in dense])
            for merged in self.merged if joins else ():
                if not isinstance(merged.product, QuantizedSwitchLinear):
                    merged.product(mx.zeros((*x.shape[:-1], merged.width), x.dtype))
            own = self._parts.items() if joins else ()
            parts = {key: part for key, part in own if not part.of_experts}
            kernels = kernels_of(seen, parts)
            experts = any(isinstance(module, QuantizedSwitchLinear) for module, _ in seen.calls)
            if fuses and experts and not any(map(_needs_sorted, layer.modules())):
                plain = look(layer, self._run, x, offset, masked, UNSORTED) if seen.sorts else seen
                found = self._experts(layer, plain, parts)
                if found is not None:
                    unsorted, seen, (parts, kernels) = seen.sorts, plain, found
            modules = layer.modules()
            mine = self._run, key, way, unsorted, x.dtype, *kind(modules, seen, parts, kernels)
            split = next((split for other, split in self._known if _equal(other, mine)), None)
            if split is None:
                split = Split(layer, self._run, seen, parts, kernels, x, offset, fuses, unsorted)
                self._known.append((mine, split))
            self.splits[key] = split, held(wholes(parts))
        except BaseException as error:  # stand-ins are no arrays: a layer may do anything to them
            self.undo()
            if not isinstance(error, Exception):  # the next call tries again
                raise
            known = isinstance(error, Unsplittable)
            if not known:  # it may be the arrays' fault, as where they are traced
                self._remember(layer)
            text = str(error).partition("\n")[0]
            self.reason = text if known else f"{type(error).__name__}: {text}"

    def _experts(
        self, layer: Any, seen: Seen, parts: dict[int, Part]
    ) -> tuple[dict[int, Part], dict[int, Run]] | None:
        """With experts' rows as they come, where kernels make all their products: the parts, gate
        and up of one product where that has a kernel as well, and the kernels."""
        calls = [call for call in seen.calls if isinstance(call[0], QuantizedSwitchLinear)]
        for group, given in seen.together():
            proven = method_of(group[0], "proven")
            apart = not any(id(module) in self._parts for module in group)
            if len(given) > 1 and apart and proven and proven(group[0], *given, len(group)):
                self._merge(layer, [group])
        for module, given in calls:  # for routes of such rows
            module(*given)
            part = self._parts.get(id(module))
            if part is not None:
                part.product(*part.given(given))
        own = {id(module): self._parts.get(id(module)) for module, _ in calls}
        found = kernels_of(seen, {key: part for key, part in own.items() if part})
        joined = {key: part for key, part in own.items() if part and id(part.product) in found}
        parts = parts | joined
        kernels = kernels_of(seen, parts)
        made = [id(joined[id(m)].product) if id(m) in joined else id(m) for m, _ in calls]
        return (parts, kernels) if kernels.keys() >= {*made} else None

    def _merge(self, layer: Any, groups: Sequence[Sequence[Any]]) -> None:
        parts = self._parts
        self._forget()  # views take the place of what is watched
        self._parts = parts
        for together in groups:
            for group in alike(module for module in together if not self._shares(module)):
                merged = Merged(group)
                self.merged.append(merged)
                for i, module in enumerate(group):
                    self._parts[id(module)] = Part(merged.product, merged.ends, i)
        self._remember(layer)
        release()

    def _shares(self, module: Any) -> bool:
        return any(self._shared[id(array)] > 1 for array in module.values())

    def undo(self) -> None:
        """Arrays of their own for all that was merged."""
        self._forget()
        for merged in self.merged:
            merged.undo()
        self.merged = []
        release()


def stand(methods: Mapping[type, Any]) -> bool:
    """Whether classes' `__call__`s are what they were."""
    return all(cls.__call__ == method for cls, method in methods.items())


def _needs_sorted(module: Any) -> bool:
    """Whether it is told that rows are sorted, and is none whose products kernels make."""
    told = "sorted_indices" in inspect.signature(type(module).__call__).parameters
    return told and type(module) is not QuantizedSwitchLinear


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # attributes that do not compare
        return False

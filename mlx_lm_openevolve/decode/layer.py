"""One layer of a model that decodes with compiled layers: what it is made of, and its halves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.verdict import ALL, COMPILED
from .merge import Merged, alike, release
from .split import PRODUCTS, Part, Split, Unsplittable, held, kernels_of, kind, look, wholes

__all__ = ["Key", "Layer"]

Run = Callable[..., Any]
Key = tuple[int, type, type]  # rows, and what its mask and its cache's offset are
# After a call of that kind: a layer, and how and with which cache it was called.
Next = tuple[Key, "Layer", Key, "weakref.ref[Any]"]


class Layer:
    """One layer of a model. rows: in which of WAYS it decodes so many sequences; shared: how often
    the model's layers hold an array, by its id; known: the halves of its layers so far, by kind,
    added to; changed: called when it is no longer made of what it was made of."""

    def __init__(
        self,
        layer: Any,
        run: Run,
        rows: Mapping[int, str],
        shared: Mapping[int, int],
        known: list[tuple[Any, Split]],
        changed: Callable[[], None],
    ) -> None:
        self.rows, self.reason = rows, ""  # why it is left alone
        # With the arrays of merged products.
        self.splits: dict[Key, tuple[Split, list[mx.array]]] = {}
        self.merged: list[Merged] = []
        self.next: Next | None = None  # who took what it returned
        self._parts: dict[int, Part] = {}
        self._layer, self._run = weakref.ref(layer), run
        self._shared, self._known, self._changed = shared, known, changed
        self._remember(layer)

    def _remember(self, layer: Any) -> None:
        """What it is made of. Modules and arrays by id, and weakly: to hold them would keep alive
        what the model replaces. When one dies another may take its id: then all is over."""

        def died(_: Any) -> None:
            self.drop()

        modules = layer.modules()
        self._modules = [weakref.ref(module, died) for module in modules]
        values = held(modules)
        self._held = [*map(id, values)]
        self._plain: list[Any] = [vars(module) for module in modules]
        self._was = [dict(plain) for plain in self._plain]
        # For a moment other threads may see what a trace puts over the products of layers.
        self._classes = list({*map(type, modules)} - {*PRODUCTS, type(layer)})
        self._calls = [cls.__call__ for cls in self._classes]
        self.alive = [
            weakref.ref(value, died) if isinstance(value, mx.array | Module) else value
            for value in values
        ]

    def unchanged(self) -> list[Any] | None:
        """All that its modules hold, where it is made of the same modules, arrays, attributes and
        methods still. Asked of every layer at every step, at its call: a model may change one
        while another runs."""
        modules: Any = [ref() for ref in self._modules]
        try:
            values = held(modules)
            calls = [cls.__call__ for cls in self._classes]
            same = [*map(id, values)] == self._held and self._plain == self._was
            return values if same and calls == self._calls else None
        except (TypeError, ValueError):  # one is dead; attributes that do not compare
            return None

    def drop(self) -> None:
        """Forget what was seen, and say so."""
        if self.alive:
            self._forget()
            self.reason = "it was changed"
            for merged in self.merged:
                del merged.product
            self._changed()

    def _forget(self) -> None:
        self.splits.clear()
        self.alive, self._parts, self.next = [], {}, None

    def split(self, key: Key, x: mx.array, offset: int | mx.array) -> None:
        """Find its halves for such calls as this one, unless it is left alone."""
        layer: Any = self._layer()
        masked = key[1] is mx.array
        if self.reason or key in self.splits:
            return
        try:
            seen = look(layer, self._run, x, offset, masked)
            way = self.rows[key[0]]
            joins, fuses = way != COMPILED, way == ALL
            if joins and not self.merged:
                # What a kernel serves stays separate: its verdict is about its own shape.
                served = kernels_of(seen, {})
                self._merge(layer, [[m for m in g if id(m) not in served] for g in seen.together()])
            for merged in self.merged if joins else ():
                merged.product(mx.zeros((*x.shape[:-1], merged.width), x.dtype))
            parts = self._parts if joins else {}
            kernels = kernels_of(seen, parts)
            mine = self._run, key, way, x.dtype, *kind(layer.modules(), seen, parts, kernels)
            split = next((split for other, split in self._known if _equal(other, mine)), None)
            if split is None:
                split = Split(layer, self._run, seen, parts, kernels, x, offset, fuses)
                self._known.append((mine, split))
            self.splits[key] = split, held(wholes(parts))
        except Exception as error:  # stand-ins are no arrays: a layer may do anything to them
            known = isinstance(error, Unsplittable)
            self.undo()
            text = str(error).partition("\n")[0]
            self.reason = text if known else f"{type(error).__name__}: {text}"

    def _merge(self, layer: Any, groups: Sequence[Sequence[Any]]) -> None:
        self._forget()  # views take the place of what is watched
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


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # attributes that do not compare
        return False

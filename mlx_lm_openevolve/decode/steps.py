"""Run time: a model of a structure with an accepted verdict decodes with compiled layers.

    Model.__call__ --first call, or something changed--> structure --verdicts--> rows | none
       its layers' classes' `__call__` replaced -> a layer's first token: looked at (look.py), its
       products merged (merge.py) -> the next ones: its compiled halves

Where no verdict of this chip accepts the structure, all that changes is one look-up a step.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from types import NoneType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.verdict import ALL
from ..runtime.holders import model_classes
from ..runtime.info import ModelInfo
from ..runtime.patch import MethodPatch
from .layer import Call, Key, Layer, stand
from .split import Split
from .store import StorePatch
from .structure import rows_of, structure
from .writes import Writes

__all__ = ["Steps"]

MAX_DECIDED = 16  # times that one model is looked at: what changes ever again is left alone
Run = Callable[..., Any]
NAMED = "mask", "cache"
_NAMED = {*NAMED}, {"cache"}, set[str]()  # after one, two and three arguments
MASKS, OFFSETS = (NoneType, mx.array), (int, mx.array)
NO_VERDICT = "no verdict of this chip accepts it: `tune` judges it"


# A call that the layer before has begun: the layer's, its x and its offset, also as an array, and
# its queries, keys and values.
_Begun = tuple[Call, Any, Any, mx.array, Any]


class _Model:
    """One model that was called."""

    def __init__(self, model: Any) -> None:
        self.model = weakref.ref(model)
        self.name = f"{type(model).__module__}.{type(model).__qualname__}"
        self.decided, self.times = False, 0
        self.structure = ""
        self.rows: dict[int, str] = {}
        self.reason = NO_VERDICT
        self.layers: dict[int, Layer] = {}  # by its number
        self.methods: dict[type, Any] = {}  # of all layers' classes
        self.others: dict[int, str] = {}  # why a layer is none that can be compiled

    def info(self) -> ModelInfo:
        """What became of it."""
        return {
            "model": self.name,
            "compiled": sum(bool(x.splits) for x in self.layers.values()),
            "merged": sum(len(x.merged) for x in self.layers.values()),
            "separate": {
                str(i): x.reason or "no step that could be compiled was seen"
                for i, x in sorted(self.layers.items())
                if not x.splits
            }
            | {str(i): reason for i, reason in self.others.items()},
            "rows": sorted(self.rows),
            "reason": self.reason,
        }


class Steps:
    """Compiled layers in this process. Thread-safe. accepted: by its slug which of WAYS a verdict
    accepts.

    A replacement as those of runtime/patch.py are: `install`, `restore`, `installed`, `unreached`.
    """

    def __init__(self, accepted: Mapping[str, str]) -> None:
        self.accepted = dict(accepted)
        self.layers: dict[int, Layer] = {}  # by the layer's id, while it lives
        self._models: dict[int, _Model] = {}  # by the model's id, likewise
        self._deaths: dict[int, weakref.ref[Any]] = {}  # of both
        self._gone: dict[str, ModelInfo] = {}  # by structure, what became of models that died
        self._patches: dict[type, MethodPatch] = {}
        self._runs: dict[type, Any] = {}  # what stood there before
        self._offset: tuple[int, mx.array] = (0, mx.array(0))
        # What was made last, by which call, and what the next layer begins with. Of one thread at
        # a time: who finds another's makes its own.
        self._last: tuple[mx.array, Call] | None = None
        self._ahead: _Begun | None = None
        self._writes = Writes()
        self._lock = threading.RLock()
        self._hook: Any = None

    @property
    def installed(self) -> bool:
        return self._hook is not None

    def install(self) -> None:
        """Replace `__call__` of the classes by whose name mlx-lm loads models, `Model`; also of
        those that are defined from now on."""
        if self.installed:
            return
        self._hook = classmethod(lambda cls, **named: self._defined(cls, **named))
        if "__init_subclass__" not in vars(Module):  # else what another put there is left alone
            setattr(Module, "__init_subclass__", self._hook)  # noqa: B010
        for cls in list(model_classes()):
            self._reach(cls)

    def restore(self) -> None:
        """Give every model its separate layers back, and every class its method."""
        with self._lock:
            if vars(Module).get("__init_subclass__") is self._hook is not None:
                del Module.__init_subclass__
            self._hook = self._last = self._ahead = None
            for patch in self._patches.values():
                patch.restore()
            self._patches.clear()
            self._runs.clear()
            for layer in list(self.layers.values()):
                layer.undo()
            self._writes.restore()
            self.layers.clear()
            self._models.clear()
            self._deaths.clear()
            self._gone.clear()

    def unreached(self) -> list[str]:
        return [name for patch in self._patches.values() for name in patch.unreached()]

    @contextlib.contextmanager
    def switched(self, *, on: bool) -> Iterator[None]:
        """With the classes of layers as they are or as they were, for a comparison: the weights
        stay where they lie."""
        patches = list(self._patches.values()) if not on else []
        for patch in patches:
            patch.restore()
        try:
            yield
        finally:
            for patch in patches:
                patch.install()

    def info(self) -> dict[str, ModelInfo]:
        """The models that were called so far, by structure."""
        with self._lock:
            known = [(x, x.model()) for x in self._models.values()]
            alive = ((x, model) for x, model in known if model is not None)
            return self._gone | {x.structure or structure(m): x.info() for x, m in alive}

    def _defined(self, cls: type, **named: Any) -> None:
        super(Module, cls).__init_subclass__(**named)  # type: ignore[misc]
        if self.installed:
            self._reach(cls)

    def _reach(self, cls: type) -> None:
        if cls.__name__ == "Model" and "__call__" in vars(cls):
            self._replace(cls, self._of_model)

    def _replace(self, cls: type, wrap: Callable[[Run], Any]) -> None:
        with self._lock:
            if self.installed and cls not in self._patches:
                self._patches[cls] = MethodPatch(cls, "__call__", wrap, guards=True)
                self._patches[cls].install()

    def _of_model(self, original: Run) -> Run:
        models, steps = self._models, self

        def call(self_: Any, *args: Any, **kwargs: Any) -> Any:
            seen = models.get(id(self_))
            if seen is None or not seen.decided:
                # Without a cache it is trained or evaluated; its weights may be traced.
                cache = args[1] if len(args) > 1 else kwargs.get("cache")
                if cache is not None:
                    steps._decide(self_)
            elif seen.layers and not (steps._writes.stand and stand(seen.methods)):
                for layer in [*steps.layers.values()]:
                    layer.written()
            try:
                return original(self_, *args, **kwargs)
            finally:  # it may have ended in the midst of its layers
                steps._last = steps._ahead = None

        return call

    def _of_layer(self, original: Run) -> Run:
        """A `__call__(layer, x, mask, cache)` that runs a layer's compiled halves."""
        layers, steps = self.layers, self

        def call(self: Any, *args: Any, **named: Any) -> Any:
            layer = layers.get(id(self))
            count = len(args)
            if layer is None or not 0 < count < 4 or not named.keys() <= _NAMED[count - 1]:
                return original(self, *args, **named)
            given: Any = (*args, *map(named.get, NAMED[count - 1 :]))
            x, mask, cache = given
            offset: Any = getattr(cache, "offset", None)
            ahead = steps._ahead
            if ahead is not None:
                now, of, at, *_ = ahead
                _, of_mask, of_offset = now.key
                if (
                    now.layer is layer
                    and of is x
                    and now.live
                    and type(mask) is of_mask
                    and type(offset) is of_offset
                    and (at is offset or (of_offset is int and at == offset))
                ):
                    return steps._go_on(ahead, mask, cache)
            shape = x.shape
            if self._training or shape[1:-1] != (1,) or shape[0] not in layer.rows:
                layer.check()
                return original(self, *args, **named)
            key = shape[0], type(mask), type(offset)
            if key not in layer.splits:
                # As ever, this once: what decides on routes for products has seen real arrays.
                out = original(self, *args, **named)
                if key[1] in MASKS and key[2] in OFFSETS:
                    # Else what is to be computed of all layers so far holds the weights that are
                    # joined. Where it is traced it cannot be.
                    with contextlib.suppress(ValueError):
                        mx.eval(out)
                    with steps._lock:
                        if layers.get(id(self)) is layer:  # not let go in the meantime
                            layer.split(key, x, offset)
                return out
            begun = steps._begin(layer, x, offset, key, cache)
            if begun is None:
                layer.drop()
                return original(self, *args, **named)
            return steps._go_on(begun, mask, cache)

        return call

    def _begin(self, layer: Layer, x: Any, offset: Any, key: Key, cache: Any) -> _Begun | None:
        """A call that nothing has begun; None where the layer was changed."""
        now = layer.call(key)
        if now is None:
            return None
        last = self._last
        # What one layer returned another takes.
        if last is not None and last[0] is x and last[1].key[::2] == key[::2]:
            with contextlib.suppress(TypeError):  # a cache without weak references
                last[1].then = layer, key, weakref.ref(cache)
        # An update may change an array in place.
        array = self._as_array(offset) if key[2] is int else copy.copy(offset)
        return now, x, offset, array, now.split.first(x, array, now.arrays)

    def _go_on(self, begun: _Begun, mask: Any, cache: Any) -> mx.array:
        """What the layer returns; where the next layer is known, that begins with it."""
        now, x, offset, array, parts = begun
        out = now.split.attend(parts, mask, cache, now.arrays)
        following, at = self._next(now, offset, array)
        made: mx.array
        if following is None:
            made = now.split.last(x, array, out, now.arrays)
            self._ahead = None
        else:
            its = array if following.key[2] is int else copy.copy(at)
            joint = now.split.joint(following.split)
            made, parts = joint(x, array, out, now.arrays, its, following.arrays)
            self._ahead = following, made, at, its, parts
        self._last = made, now
        return made

    def _next(self, now: Call, offset: Any, array: mx.array) -> tuple[Call | None, Any]:
        """How the layer is called that came next the last time, and its offset, where that fits
        what comes now."""
        if now.then is None:
            return None, None
        layer, key, ref = now.then
        following = layer.calls.get(key)
        if key[2] is int:  # a number is the same for all layers of a step
            return following, offset
        its = getattr(ref(), "offset", None)  # an array is a cache's own; of another batch, maybe
        fits = isinstance(its, mx.array) and its.shape == array.shape
        return (following, its) if fits else (None, None)

    def _as_array(self, offset: int) -> mx.array:
        """One array for all layers of a step."""
        known, array = self._offset
        if known != offset:
            array = mx.array(offset)
            self._offset = offset, array
        return array

    def _decide(self, model: Any) -> None:
        with self._lock:
            if not self.installed:  # by another's wrapper, which holds what was restored
                return
            seen = self._models.get(id(model))
            if seen is None:
                seen = self._models[id(model)] = _Model(model)
                self._at_death(model, self._died)
            if model.training:
                return  # the next call asks again
            seen.decided, seen.times = True, seen.times + 1
            try:
                self._apply(model, seen)
            except Exception as error:  # a model of another make: it runs as ever
                seen.reason = f"{type(error).__name__} where it is looked at: {error}"
            except BaseException:  # an interrupt: the next call asks again
                seen.decided = False
                raise

    def _at_death(self, of: Any, then: Callable[[int], Any]) -> None:
        key = id(of)

        def died(_: Any) -> None:
            self._deaths.pop(key, None)
            then(key)

        self._deaths[key] = weakref.ref(of, died)

    def _died(self, model: int) -> None:
        """Before its layers do: a command's model is gone when its process tells of it."""
        seen = self._models.pop(model, None)
        if seen is not None and seen.structure:
            self._gone[seen.structure] = seen.info()

    def _apply(self, model: Any, seen: _Model) -> None:
        mine = {*map(id, seen.layers.values())}
        for key, layer in list(self.layers.items()):
            if id(layer) in mine:
                layer.undo()
                self.layers.pop(key, None)
        seen.layers.clear()
        seen.methods.clear()
        seen.others.clear()
        seen.structure = structure(model)
        seen.rows = rows_of(seen.structure, self.accepted)
        seen.reason = "" if seen.rows else NO_VERDICT
        if seen.times > MAX_DECIDED:
            seen.rows, seen.reason = {}, "it changes all the time"
        if not seen.rows:
            return

        def changed() -> None:
            seen.decided, self._last, self._ahead = False, None, None
            mine = {*seen.layers.values()}
            for other in [*self._models.values()]:
                other.decided = other.decided and mine.isdisjoint(other.layers.values())

        self._writes.install()
        layers = list(model.layers)
        distinct = {id(layer): layer for layer in layers if isinstance(layer, Module)}.values()
        shared = Counter(chain.from_iterable(map(_arrays, distinct)))
        halves: list[tuple[Any, Split]] = []
        for i, module in enumerate(layers):
            cls, key = type(module), id(module)
            run = self._runs.setdefault(cls, vars(cls).get("__call__"))
            if not _takes(run):
                seen.others[i] = "it is not called with x, mask and cache"
                continue
            if key not in self.layers:  # else a model within this one, or around it, has it
                self.layers[key] = Layer(
                    module, run, seen.rows, shared, halves, self._writes, changed
                )
                self._at_death(module, lambda key: self.layers.pop(key, None))
                self._replace(cls, self._of_layer)
            seen.layers[i] = self.layers[key]
            seen.methods.update(self.layers[key].methods)
        if seen.layers and ALL in seen.rows.values():
            self._patches.setdefault(StorePatch, StorePatch()).install()


def _arrays(layer: Any) -> list[int]:
    """Ids of the arrays of each of its modules."""
    return [id(a) for m in {id(m): m for m in layer.modules()}.values() for a in m.values()]


def _takes(run: Any) -> bool:
    """Whether a method is called as (x, mask, cache)."""
    if run is None:
        return False
    names = list(inspect.signature(run).parameters)[1:4]
    return names[1:] == ["mask", "cache"]

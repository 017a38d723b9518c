"""Run time: a model of a structure with an accepted verdict decodes with compiled layers.

    Model.__call__ --first call, or something changed--> structure --verdicts--> rows | none
       its layers' classes' `__call__` replaced -> a layer's first token: looked at (split.py), its
       products merged (merge.py) -> the next ones: its compiled halves

Where no verdict of this chip accepts the structure, all that changes is one look-up a step.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..device import Device, fingerprint
from ..kernels.registry import Registry
from ..kernels.verdict import STEP, Verdict, gate_version
from ..runtime.holders import model_classes
from ..runtime.info import ModelInfo
from ..runtime.patch import MethodPatch
from .merge import Merged, alike, release
from .split import Split, Unsplittable, look
from .structure import rows_of, structure

__all__ = ["ALL", "COMPILED", "WAYS", "Steps", "stored"]

# The ways in which a step is judged, the first before the second: compiled layers whose products
# of one input are one, or compiled layers alone.
ALL, COMPILED = "compiled-merged", "compiled"
WAYS = (ALL, COMPILED)
MAX_DECIDED = 16  # times that one model is looked at: weights that change ever again are left alone
Run = Callable[..., Any]
NO_VERDICT = "no verdict of this chip accepts it: `tune` makes one"


def stored(device: Device, registries: Sequence[Registry]) -> list[Verdict]:
    """The verdicts on steps that count on this device, of each registry the best first."""
    here = fingerprint(device, gate_version(STEP), evidence=False)
    found = (verdict for registry in registries for verdict in registry.about(device.slug, STEP))
    return [v for v in found if v.kernel in WAYS and v.counts_for(here)]


class Layer:
    """One layer of a model. rows: in which of WAYS it decodes so many sequences; changed: called
    when it is no longer made of what it was made of."""

    def __init__(
        self, layer: Any, run: Run, rows: Mapping[int, str], changed: Callable[[], None]
    ) -> None:
        self.rows, self.reason = rows, ""  # why it is left alone
        self.splits: dict[tuple[int, bool], Split] = {}  # by rows, and whether masked
        self.merged: list[Merged] = []
        self._of: dict[int, Merged] = {}
        self._layer, self._run, self._changed = weakref.ref(layer), run, changed
        self._made_of: list[tuple[weakref.ref[Any], list[int]]] = []
        self._remember(layer)

    def _remember(self, layer: Any) -> None:
        """The modules and arrays that it is made of, by id, and weakly: to hold them would keep
        alive what the model replaces. When one dies another may take its id: then all is over."""
        modules = layer.modules()

        def died(_: Any) -> None:
            self.drop()

        self._made_of = [
            (weakref.ref(module, died), [*map(id, module.values())]) for module in modules
        ]
        held = [value for module in modules for value in module.values()]
        self._alive = [
            weakref.ref(value, died) if isinstance(value, mx.array | Module) else value
            for value in held
        ]

    def unchanged(self) -> bool:
        """Whether it is made of the same modules and arrays still."""
        for ref, ids in self._made_of:
            module = ref()
            if module is None or [*map(id, module.values())] != ids:
                return False
        return True

    def drop(self) -> None:
        """Forget what was seen, and say so."""
        if self._made_of:
            self._made_of, self._alive, self.reason = [], [], "it was changed"
            self.splits.clear()
            self._changed()

    def split(self, x: mx.array, masked: bool) -> None:
        """Find its halves for such calls as this one, unless it is left alone."""
        key, layer = (x.shape[0], masked), self._layer()
        if self.reason or key in self.splits:
            return
        try:
            seen = look(layer, self._run, x, masked)
            if self.rows[key[0]] == ALL and not self.merged:
                self._merge(layer, seen.products)
            for merged in self.merged:
                merged.product(mx.zeros((*x.shape[:-1], merged.width), x.dtype))
            self.splits[key] = Split(layer, self._run, seen, self._of, x)
        except Exception as error:  # stand-ins are no arrays: a layer may do anything to them
            known = isinstance(error, Unsplittable)
            self.undo()
            text = str(error).partition("\n")[0]
            self.reason = text if known else f"{type(error).__name__}: {text}"

    def _merge(self, layer: Any, groups: Sequence[Sequence[Any]]) -> None:
        for group in (some for together in groups for some in alike(together)):
            self._alive = []  # views take the place of what is watched
            merged = Merged(group)
            self.merged.append(merged)
            self._of |= dict.fromkeys(map(id, group), merged)
        self._remember(layer)
        release()

    def undo(self) -> None:
        """Arrays of their own for all that was merged."""
        self._made_of, self._alive = [], []
        self.splits.clear()
        for merged in self.merged:
            merged.undo()
        self.merged, self._of = [], {}
        release()


class _Model:
    """One model that was called."""

    def __init__(self, model: Any) -> None:
        self.model = weakref.ref(model)
        self.decided, self.times = False, 0
        self.structure = ""
        self.rows: dict[int, str] = {}
        self.reason = NO_VERDICT
        self.layers: dict[int, Layer] = {}


class Steps:
    """Compiled layers in this process. Thread-safe. accepted: by its slug which of WAYS a verdict
    accepts.

    A replacement as those of runtime/patch.py are: `install`, `restore`, `installed`, `unreached`.
    """

    def __init__(self, accepted: Mapping[str, str]) -> None:
        self.accepted = dict(accepted)
        self.layers: dict[int, Layer] = {}  # by the layer's id, while it lives
        self._models: dict[int, _Model] = {}  # by the model's id, likewise
        self._patches: dict[type, MethodPatch] = {}
        self._runs: dict[type, Any] = {}  # what stood there before
        self._offset: tuple[int, mx.array] = (0, mx.array(0))
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
        defined: Any = self._defined
        self._hook = classmethod(defined)
        if "__init_subclass__" not in vars(Module):  # else what another put there is left alone
            setattr(Module, "__init_subclass__", self._hook)  # noqa: B010
        for cls in list(model_classes()):
            self._reach(cls)

    def restore(self) -> None:
        """Give every model its separate layers back, and every class its method."""
        with self._lock:
            if vars(Module).get("__init_subclass__") is self._hook is not None:
                del Module.__init_subclass__
            self._hook = None
            for patch in self._patches.values():
                patch.restore()
            self._patches.clear()
            self._runs.clear()
            for layer in list(self.layers.values()):
                layer.undo()
            self.layers.clear()
            self._models.clear()

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
            known = [(seen, seen.model()) for seen in self._models.values()]
            return {
                seen.structure or structure(model): {
                    "model": f"{type(model).__module__}.{type(model).__qualname__}",
                    "compiled": sum(bool(x.splits) for x in seen.layers.values()),
                    "merged": sum(len(x.merged) for x in seen.layers.values()),
                    "separate": {
                        str(i): x.reason for i, x in enumerate(seen.layers.values()) if x.reason
                    },
                    "rows": sorted(seen.rows),
                    "reason": seen.reason,
                }
                for seen, model in known
                if model is not None
            }

    def _defined(self, cls: type, **named: Any) -> None:
        super(Module, cls).__init_subclass__(**named)  # type: ignore[misc]
        if self.installed:
            self._reach(cls)

    def _reach(self, cls: type) -> None:
        if cls.__name__ == "Model" and "__call__" in vars(cls):
            self._replace(cls, self._of_model)

    def _replace(self, cls: type, wrap: Callable[[Run], Any]) -> None:
        with self._lock:
            if cls not in self._patches:
                self._patches[cls] = MethodPatch(cls, "__call__", wrap, guards=True)
                self._patches[cls].install()

    def _of_model(self, original: Run) -> Run:
        models = self._models

        def call(self_: Any, *args: Any, **kwargs: Any) -> Any:
            seen = models.get(id(self_))
            if seen is None or not seen.decided:
                # Without a cache it is trained or evaluated; its weights may be traced.
                cache = args[1] if len(args) > 1 else kwargs.get("cache")
                if cache is not None:
                    self._decide(self_)
            return original(self_, *args, **kwargs)

        return call

    def _of_layer(self, original: Run) -> Run:
        """A `__call__(layer, x, mask, cache)` that runs a layer's compiled halves."""
        layers, steps = self.layers, self

        def call(self: Any, *args: Any, **named: Any) -> Any:
            layer = layers.get(id(self))
            if layer is None or not args or len(args) + len(named) > 3 or self._training:
                return original(self, *args, **named)
            x, mask, cache = (*args, *map(named.get, ("mask", "cache")[len(args) - 1 :]))[:3]
            shape = x.shape
            if shape[1:-1] != (1,) or shape[0] not in layer.rows:
                return original(self, *args, **named)
            offset, masked = getattr(cache, "offset", None), mask is not None
            split = layer.splits.get((shape[0], masked))
            if split is None:
                # MLX runs it this once: so what decides on routes for products has seen real arrays.
                out = original(self, *args, **named)
                if offset is not None:
                    with steps._lock:
                        layer.split(x, masked)
                return out
            if not layer.unchanged():
                layer.drop()
            elif type(offset) is int:
                return split(x, steps._as_array(offset), mask, cache)
            elif type(offset) is mx.array:
                return split(x, offset, mask, cache)
            return original(self, *args, **named)

        return call

    def _as_array(self, offset: int) -> mx.array:
        """One array for all layers of a step."""
        known, array = self._offset
        if known != offset:
            array = mx.array(offset)
            self._offset = offset, array
        return array

    def _decide(self, model: Any) -> None:
        with self._lock:
            seen = self._models.get(id(model))
            if seen is None:
                seen = self._models[id(model)] = _Model(model)
                weakref.finalize(model, self._models.pop, id(model), None)
            if model.training:
                return  # the next call asks again
            seen.decided, seen.times = True, seen.times + 1
            if not self.accepted:
                return
            try:
                self._apply(model, seen)
            except Exception as error:  # a model of another make: it runs as ever
                seen.reason = f"{type(error).__name__} where it is looked at: {error}"

    def _apply(self, model: Any, seen: _Model) -> None:
        for layer in seen.layers.values():
            layer.undo()
        seen.layers.clear()
        seen.structure = structure(model)
        seen.rows = rows_of(seen.structure, self.accepted)
        seen.reason = "" if seen.rows else NO_VERDICT
        if seen.times > MAX_DECIDED:
            seen.rows, seen.reason = {}, "its weights change all the time"
        if not seen.rows:
            return

        def changed() -> None:
            seen.decided = False

        for module in model.layers:
            cls = type(module)
            run = self._runs.setdefault(cls, vars(cls).get("__call__"))
            if _takes(run):
                key = id(module)
                seen.layers[key] = self.layers[key] = Layer(module, run, seen.rows, changed)
                weakref.finalize(module, self.layers.pop, key, None)
                self._replace(cls, self._of_layer)


def _takes(run: Any) -> bool:
    """Whether a method is called as (x, mask, cache)."""
    if run is None:
        return False
    names = list(inspect.signature(run).parameters)[1:4]
    return names[1:] == ["mask", "cache"]

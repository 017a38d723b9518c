"""Run time: a model of a structure with an accepted verdict decodes with merged products.

    Model.__call__ --first call, or something changed--> structure --verdicts--> rows | none
       its recognised layers --merge--> their classes' `__call__` replaced (merge.py)

Where no verdict of this chip accepts the structure, all that changes is one look-up a step.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlx.nn.layers.base import Module

from ..device import Device, fingerprint
from ..kernels.registry import Registry
from ..kernels.verdict import STEP, Verdict, gate_version
from ..runtime.holders import model_classes
from ..runtime.info import ModelInfo
from ..runtime.patch import MethodPatch
from .bodies import Body
from .merge import Merges, release
from .structure import Layer, layers, rows_of, structure

__all__ = ["ALL", "GATE_UP", "MERGED", "Steps", "stored"]

# What is judged, the first before the second: all products that can be one, or these alone. With
# several rows the parts of a product do not lie together, and norm and rope copy them.
ALL, GATE_UP = "merged-products", "merged-gate-up"
MERGED: dict[str, tuple[str, ...] | None] = {ALL: None, GATE_UP: ("gate_proj", "up_proj")}
MAX_DECIDED = 16  # times that one model is looked at: weights that change ever again are left alone
NO_VERDICT = "no verdict of this chip accepts it: `tune` makes one"


def stored(device: Device, registries: Sequence[Registry]) -> list[Verdict]:
    """The verdicts on steps that count on this device, of each registry the best first."""
    here = fingerprint(device, gate_version(STEP), evidence=False)
    found = (verdict for registry in registries for verdict in registry.about(device.slug, STEP))
    return [v for v in found if v.kernel in MERGED and v.counts_for(here)]


class _Seen:
    """One model that was called."""

    def __init__(self, model: Any) -> None:
        self.model = weakref.ref(model)
        self.decided, self.times = False, 0
        self.structure = ""
        self.rows: dict[int, str] = {}
        self.reason = NO_VERDICT


class Steps:
    """Merged products in this process. Thread-safe. accepted: by its slug what of MERGED a verdict
    accepts.

    A replacement as those of runtime/patch.py are: `install`, `restore`, `installed`, `unreached`.
    """

    def __init__(self, accepted: Mapping[str, str]) -> None:
        self.accepted = dict(accepted)
        self.merges = Merges(self._changed)
        self.bodies: dict[Any, Body | None] = {}
        self._seen: dict[int, _Seen] = {}  # by the model's id, while it lives
        self._patches: dict[type, MethodPatch] = {}
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
            for seen in self._seen.values():
                model = seen.model()
                if model is not None:
                    self._separate(model)
            for patch in self._patches.values():
                patch.restore()
            self._patches.clear()
            self._seen.clear()

    def unreached(self) -> list[str]:
        return [name for patch in self._patches.values() for name in patch.unreached()]

    @contextlib.contextmanager
    def switched(self, *, on: bool) -> Iterator[None]:
        """With the classes of merged layers as they are or as they were, for a comparison: the
        weights stay where they lie."""
        patches = list(self._patches.values()) if not on else []
        for patch in patches:
            patch.restore()
        try:
            yield
        finally:
            for patch in patches:
                patch.install()

    def merge(self, model: Any) -> None:
        """Merge a model's products now, as its first call would. Raises what merging raises."""
        with self._lock:
            seen = self._known(model)
            seen.decided = True
            self._apply(model, seen)
            release()

    def info(self) -> dict[str, ModelInfo]:
        """The models that were called so far, by structure."""
        with self._lock:
            known = [(seen, seen.model()) for seen in self._seen.values()]
            return {
                seen.structure or structure(model): {
                    "model": f"{type(model).__module__}.{type(model).__qualname__}",
                    "recognised": _count(found := layers(model, self.bodies)),
                    "merged": _count([x for x in found if id(x.module) in self.merges.of]),
                    "separate": {x.path: x.reason for x in found if x.reason},
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
            self._replace(cls, self._wrap)

    def _replace(self, cls: type, wrap: Callable[[Callable[..., Any]], Any]) -> None:
        with self._lock:
            if cls not in self._patches:
                self._patches[cls] = MethodPatch(cls, "__call__", wrap, guards=True)
                self._patches[cls].install()

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        models = self._seen

        def call(self_: Any, *args: Any, **kwargs: Any) -> Any:
            seen = models.get(id(self_))
            if seen is None or not seen.decided:
                # Without a cache it is trained or evaluated; its weights may be traced.
                cache = args[1] if len(args) > 1 else kwargs.get("cache")
                if cache is not None:
                    self._decide(self_)
            return original(self_, *args, **kwargs)

        return call

    def _changed(self, owner: int) -> None:
        seen = self._seen.get(owner)
        if seen is not None:
            seen.decided = False

    def _known(self, model: Any) -> _Seen:
        seen = self._seen.get(id(model))
        if seen is None:
            seen = self._seen[id(model)] = _Seen(model)
            weakref.finalize(model, self._seen.pop, id(model), None)
        return seen

    def _decide(self, model: Any) -> None:
        with self._lock:
            seen = self._known(model)
            if model.training:
                return  # the next call asks again
            seen.decided, seen.times = True, seen.times + 1
            if not self.accepted:
                return
            if seen.times > MAX_DECIDED:
                seen.reason = "its weights change all the time"
                self._separate(model)
                return
            try:
                self._apply(model, seen)
            except Exception as error:
                # Weights are traced, memory holds no copy of a layer, or a model is of another
                # make: it runs as ever, and the next call tries again.
                seen.decided, seen.reason = False, f"not all is merged: {error}"
            release()

    def _apply(self, model: Any, seen: _Seen) -> None:
        seen.structure = structure(model)
        seen.rows = rows_of(seen.structure, self.accepted)
        seen.reason = "" if seen.rows else NO_VERDICT
        if not seen.rows:
            self._separate(model)
            return
        for layer in layers(model, self.bodies):
            names = layer.body.products
            rows = {n for n, what in seen.rows.items() if MERGED[what] in (None, names)}
            if rows and not layer.reason:
                self._merge(layer, rows, id(model))

    def _merge(self, layer: Layer, rows: set[int], owner: int) -> None:
        known = self.merges.of.get(id(layer.module))
        if known is None or not known.of(layer.module):
            self.merges.add(layer.module, layer.body.products, rows, owner)
            cls = type(layer.module)
            self._replace(cls, self.merges.wrap)
            self.bodies[vars(cls)["__call__"]] = layer.body

    def _separate(self, model: Any) -> None:
        for module in model.modules():
            self.merges.drop(module, id(model))


def _count(found: Sequence[Layer]) -> dict[str, int]:
    return dict(Counter(type(layer.module).__qualname__ for layer in found))

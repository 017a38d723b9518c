"""What is written to modules, told to whom it concerns.

    module.weight = w, module["weight"] = w, update(), load_weights(), freeze(), train(), del ...
        --a method of Module or of dict--> written, then told

Nothing is looked at where nothing is written: that is what a decode step, which reads a thousand
arrays, can pay. Not told: what is written past a module's methods (`dict.__setitem__(module, ...)`,
`vars(module)[...]`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from mlx.nn.layers.base import Module

from ..runtime.patch import MethodPatch

__all__ = ["METHODS", "Writes"]

METHODS = (
    *("__setattr__", "__delattr__", "__setitem__", "__delitem__", "__ior__"),
    *("clear", "pop", "popitem", "setdefault"),
)
Told = Callable[[], None]


class Writes:
    """Methods of Module that tell of what they write, from `install` to `restore`."""

    def __init__(self) -> None:
        self._told: dict[int, list[Told]] = {}  # by a module's id
        self._lock = threading.RLock()
        self._patches = [MethodPatch(Module, name, self._telling, True) for name in METHODS]

    def install(self) -> None:
        for patch in self._patches:
            patch.install()

    def restore(self) -> None:
        for patch in self._patches:
            patch.restore()
        self._told.clear()

    @property
    def stand(self) -> bool:
        """Whether nobody has put another method in the place of one of them."""
        return all(patch.stands for patch in self._patches)

    def tell(self, told: Told, modules: Sequence[int]) -> None:
        """Call this whenever one of the modules, by their ids, was written to."""
        with self._lock:
            for key in modules:
                while told not in self._told.get(key, ()):  # what dies in between is forgotten
                    self._told.setdefault(key, []).append(told)

    def forget(self, told: Told, modules: Sequence[int]) -> None:
        """No longer."""
        with self._lock:
            for key in modules:
                if told in self._told.get(key, ()):
                    self._told[key].remove(told)
                if not self._told.get(key):
                    self._told.pop(key, None)

    def _telling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        by_module = self._told

        def method(self: Any, *args: Any, **named: Any) -> Any:
            try:
                return original(self, *args, **named)
            finally:  # after it: who looks before sees what was there
                for told in [*by_module.get(id(self), ())]:
                    told()

        return method

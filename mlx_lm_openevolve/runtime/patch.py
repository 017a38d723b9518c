"""The only monkey-patch: a function of mlx-lm or MLX, replaced everywhere and put back exactly.

102 of mlx-lm's model files bind its attention function at import (`from .base import ...`), and
code loaded with trust_remote_code lives outside `mlx_lm.models`: so a function is replaced by
identity, in every module that holds it. Modules imported later take the replacement from where it
stood.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

__all__ = ["Patch"]

Wrap = Callable[[Callable[..., Any]], Any]


class Patch:
    """Replaces every original of the function `name` of `home`; `install` and `restore` are
    idempotent.

    `wrap(original)` makes a replacement. There is one original where nobody else patches; where
    another library put a wrapper of its own into `home`, that wrapper is an original too and stays
    in the chain.
    """

    def __init__(self, home: ModuleType, name: str, wrap: Wrap) -> None:
        self._home, self._name, self._wrap = home, name, wrap
        self._replacements: dict[int, tuple[Any, Any]] = {}  # id(original) -> both

    @property
    def installed(self) -> bool:
        """Whether the replacement is in place."""
        return bool(self._replacements)

    def install(self) -> None:
        """Put the replacement in every loaded module. All or nothing: an error changes nothing."""
        if self.installed:
            return
        originals = {id(original): original for original in self._originals()}
        replacements = {
            key: (original, functools.wraps(original)(self._wrap(original)))
            for key, original in originals.items()
        }
        self._replacements = replacements
        try:
            _swap({key: new for key, (_, new) in replacements.items()})
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put every original back, also in modules imported since."""
        _swap({id(new): old for old, new in self._replacements.values()})
        self._replacements = {}

    def _originals(self) -> Iterator[Any]:
        yield getattr(self._home, self._name)
        # A module may hold the function itself although its home holds another's wrapper by now.
        for module in _modules():
            held = vars(module).get(self._name)
            if (
                held is not None
                and getattr(held, "__module__", None) == self._home.__name__
                and getattr(held, "__qualname__", None) == self._name
                and not hasattr(held, "__wrapped__")
            ):
                yield held


def _swap(new: dict[int, Any]) -> None:
    for module in _modules():
        for name, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, name, new[id(value)])


def _modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]

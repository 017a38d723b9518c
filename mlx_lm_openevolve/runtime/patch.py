"""The only monkey-patch: a function, or a method of one class, replaced and put back exactly.

102 of mlx-lm's model files bind its attention function at import (`from .base import ...`), so a
function is replaced in every place that models call it from (holders.py says which). Modules
imported later take the replacement from where it stood.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from ..ops import Op
from .holders import Binding, model_modules, survey

__all__ = [
    "MethodPatch",
    "Patch",
    "Replacement",
    "Wrap",
    "installed",
    "made",
    "patches_of",
    "swapping",
]

# Held by whoever puts something in a function's or method's place, or puts it back: what another
# puts there for a moment (decode/look.py) is no original.
swapping = threading.RLock()
# Of methods that were restored while another stood over them: what stood there before.
_restored: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
Wrap = Callable[[Callable[..., Any]], Any]


def _alone(method: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(method)
    def alone(self: Any) -> None:
        with swapping:
            method(self)

    return alone


class Replacement(Protocol):
    """What is replaced; `install` and `restore` are idempotent."""

    @property
    def installed(self) -> bool:
        """Whether the replacement is in place."""
        ...

    def install(self) -> None:
        """All or nothing: an error changes nothing."""
        ...

    def restore(self) -> None:
        """Put everything back as it was."""
        ...

    def unreached(self) -> list[str]:
        """Who holds the original and was left alone, for people."""
        ...


def made(home: ModuleType, name: str, wrap: Wrap, guards: bool = False) -> Replacement:
    """The patch for a function of `home`, or for a method where `name` is "Class.method"; guards:
    see MethodPatch."""
    owner, _, method = name.rpartition(".")
    if not owner:
        return Patch(home, name, wrap)
    return MethodPatch(getattr(home, owner), method, wrap, guards)


@contextmanager
def installed(patches: Sequence[Replacement]) -> Iterator[None]:
    """With these in place; all are put back at the end, whatever happens."""
    try:
        for patch in patches:
            patch.install()
        yield
    finally:
        for patch in patches:
            patch.restore()


def patches_of(op: Op[Any, Any], wrap: Wrap) -> list[Replacement]:
    """A patch for each of a family's patch points. Raises ImportError where a module is missing."""
    points = op.patch_points
    return [
        made(importlib.import_module(point.module), point.name, wrap, op.guards) for point in points
    ]


class Patch:
    """Replaces every original of the function `name` of `home`.

    `wrap(original)` makes a replacement. There is one original where nobody else patches; where
    another library put a wrapper of its own into `home`, that wrapper is an original too and stays
    in the chain.
    """

    def __init__(self, home: ModuleType, name: str, wrap: Wrap) -> None:
        self._home, self._name, self._wrap = home, name, wrap
        self._replacements: list[tuple[Any, Any]] = []  # original, what stands in its place
        self._unreached: list[str] = []

    @property
    def installed(self) -> bool:
        return bool(self._replacements)

    @_alone
    def install(self) -> None:
        if self.installed:
            return
        originals = list(self._originals())
        # Before anything is wrapped: a replacement holds its original too.
        holders, self._unreached = survey(self._home, self._name, originals)
        self._replacements = [(old, functools.wraps(old)(self._wrap(old))) for old in originals]
        try:
            _put(holders, self._replacements)
        except BaseException:
            self.restore()
            raise

    @_alone
    def restore(self) -> None:
        """Put every original back, also in modules imported since."""
        if not self.installed:
            return
        back = [(new, old) for old, new in self._replacements]
        holders, _ = survey(self._home, self._name, [new for new, _ in back])
        # What was imported since took the replacement for the function itself.
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and self._name in vars(module):
                space = vars(module)
                put = functools.partial(space.__setitem__, self._name)
                holders.append(Binding(space[self._name], put))
        _put(holders, back)
        self._replacements, self._unreached = [], []

    def unreached(self) -> list[str]:
        if not self.installed:
            return []
        changed = {
            f"{space.get('__name__')}.{self._name} (changed since)"
            for space in model_modules(self._home)
            if self._is_original(space.get(self._name))
        }
        here = getattr(self._home, self._name, None)
        if all(here is not new for _, new in self._replacements):
            changed.add(f"{self._home.__name__}.{self._name} (changed since)")
        return [*self._unreached, *sorted(changed)]

    def _originals(self) -> Iterator[Any]:
        current = getattr(self._home, self._name)
        yield current
        # A module may hold the function itself although its home holds another's wrapper by now,
        # or was loaded anew.
        seen = {id(current)}
        for space in model_modules(self._home):
            held = space.get(self._name)
            if id(held) not in seen and self._is_original(held):
                seen.add(id(held))
                yield held

    def _is_original(self, held: Any) -> bool:
        return (
            getattr(held, "__module__", None) == self._home.__name__
            and getattr(held, "__qualname__", None) == self._name
            and not hasattr(held, "__wrapped__")
        )


class MethodPatch:
    """Replaces a method of exactly one class. Instances of its subclasses keep the original, and so
    does a module that trains (mlx.nn.Module.train): kernels have no gradient on a GPU. guards: what
    `wrap` makes sees to both by itself."""

    def __init__(self, cls: type, name: str, wrap: Wrap, guards: bool = False) -> None:
        self._cls, self._name, self._wrap, self._guards = cls, name, wrap, guards
        self._own: Any = None  # what the class itself had under that name, in a list
        self._method: Any = None

    @property
    def installed(self) -> bool:
        return self._method is not None

    @property
    def stands(self) -> bool:
        """Whether it is in place, and nobody has put something in its place since."""
        return vars(self._cls).get(self._name) is self._method is not None

    @_alone
    def install(self) -> None:
        if self.installed:
            return
        cls, original = self._cls, getattr(self._cls, self._name)
        served = self._wrap(original)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.__class__ is cls and not getattr(self, "training", False):
                return served(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        self._own = [vars(cls)[self._name]] if self._name in vars(cls) else []
        self._method = functools.wraps(original)(served if self._guards else method)
        setattr(cls, self._name, self._method)

    @_alone
    def restore(self) -> None:
        if self.stands:
            own = self._own
            while own and own[0] in _restored:
                own = _restored[own[0]]
            if own:
                setattr(self._cls, self._name, own[0])
            else:
                delattr(self._cls, self._name)
        elif self.installed:
            _restored[self._method] = self._own
        self._method = None

    def unreached(self) -> list[str]:
        with swapping:
            changed = self.installed and not self.stands
        name = f"{self._cls.__module__}.{self._cls.__qualname__}.{self._name}"
        return [f"{name} (changed since)"] if changed else []


def _put(holders: Iterable[Binding], swaps: Iterable[tuple[Any, Any]]) -> None:
    new = {id(old): new for old, new in swaps}
    for holder in holders:
        if id(holder.held) in new:
            holder.put(new[id(holder.held)])

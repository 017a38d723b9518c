"""Who holds a function: the places it is called from, and the variables that merely remember it.

Called from: in a module that defines models, the global of the function's very name (or what
another library's wrapper under that name closes over), attributes of classes, and closures.
Everything else is a memory, such as `stock = base.function` in a script.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

__all__ = ["Holder", "model_modules", "survey"]

OURS = __name__.partition(".")[0]


class Holder(NamedTuple):
    """One place that a function is called from: what stands there, and how to put another."""

    held: Any
    put: Callable[[Any], None]


def model_modules(home: ModuleType) -> list[dict[str, Any]]:
    """Globals of the modules that define models: those beside `home`, and those of every subclass
    of mlx.nn.Module. mlx-lm runs a model's own code (`model_file`) in a module that is registered
    nowhere: its classes lead to it."""
    package = home.__name__.rpartition(".")[0] or home.__name__
    found = {
        id(vars(module)): vars(module)
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and f"{name}.".startswith(f"{package}.")
    }
    for cls in _models():
        for member in list(vars(cls).values()):
            space = getattr(member, "__globals__", None)
            if isinstance(space, dict) and space.get("__name__") == cls.__module__:
                found[id(space)] = space
                break
    return list(found.values())


def _models() -> Iterator[type]:
    nn = sys.modules.get("mlx.nn")  # no model is loaded without it
    todo: list[type] = [nn.Module] if nn is not None else []
    seen: set[type] = set()
    while todo:
        cls = todo.pop()
        if cls not in seen:
            seen.add(cls)
            todo += type.__subclasses__(cls)
            yield cls


def survey(home: ModuleType, name: str, functions: Iterable[Any]) -> tuple[list[Holder], list[str]]:
    """Where any of `functions` is called from, and, for people, who else holds one."""
    wanted = {id(function): function for function in functions}
    spaces = {id(space): space for space in (vars(home), *model_modules(home))}
    holders: list[Holder] = []
    above: set[int] = set()  # another's wrappers in a model's module
    for space in spaces.values():
        held = space.get(name)
        if id(held) in wanted:
            holders.append(Holder(held, partial(space.__setitem__, name)))
        while held is not None and id(held) not in wanted:
            above.add(id(held))
            held = getattr(held, "__wrapped__", None)
        for cls in list(space.values()):
            if isinstance(cls, type) and cls.__module__ == space.get("__name__"):
                holders += _attributes(cls, wanted)
    others: list[str] = []
    cells: list[CellType] = []
    for referrer in gc.get_referrers(*wanted.values()):
        if isinstance(referrer, CellType):
            cells.append(referrer)
        elif isinstance(referrer, dict) and "__spec__" in referrer:  # a module's globals
            others += _aliases(referrer, wanted, called=name if id(referrer) in spaces else "")
        elif not isinstance(referrer, dict | tuple | list | FrameType | staticmethod):
            kind = type(referrer)
            others.append(f"an object of {kind.__module__}.{kind.__qualname__}")
    for cell, function in _closures(cells):
        owner = function.__globals__
        if str(owner.get("__name__")).partition(".")[0] == OURS:
            continue
        if id(owner) in spaces or id(function) in above:
            holders.append(Holder(cell.cell_contents, partial(setattr, cell, "cell_contents")))
        else:
            others.append(f"a closure of {owner.get('__name__')}.{function.__qualname__}")
    return holders, sorted(set(others))


def _attributes(cls: type, wanted: Mapping[int, Any]) -> Iterator[Holder]:
    for key, value in list(vars(cls).items()):
        if isinstance(value, staticmethod) and id(value.__func__) in wanted:
            yield Holder(value.__func__, partial(_put_static, cls, key))
        elif id(value) in wanted:
            yield Holder(value, partial(setattr, cls, key))


def _put_static(cls: type, key: str, new: Any) -> None:
    setattr(cls, key, staticmethod(new))


def _aliases(space: dict[str, Any], wanted: Mapping[int, Any], called: str) -> Iterator[str]:
    for key, value in list(space.items()):
        if id(value) in wanted and key != called:
            yield f"{space.get('__name__')}.{key}"


def _closures(cells: list[CellType]) -> Iterator[tuple[CellType, FunctionType]]:
    """Each cell with the functions that close over it."""
    known = {id(cell) for cell in cells}
    tuples = [t for t in gc.get_referrers(*cells) if type(t) is tuple] if cells else []
    for function in gc.get_referrers(*tuples) if tuples else []:
        if isinstance(function, FunctionType):
            for cell in function.__closure__ or ():
                if id(cell) in known:
                    yield cell, function

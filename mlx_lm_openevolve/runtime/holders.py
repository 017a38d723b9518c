"""Who holds a function: the places it is called from, and the variables that merely remember it.

Called from: in a module that defines models, the global of the function's very name (or what
another library's wrapper under that name closes over), attributes of classes, and closures.
Everything else is a memory, such as `stock = base.function` in a script. Where that script defines
a model itself, its global of that very name is replaced, and nothing else in it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import (
    AsyncGeneratorType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import Any, NamedTuple

__all__ = ["Binding", "model_classes", "model_modules", "survey"]

OURS = __name__.partition(".")[0]
PROGRAM = "__main__"
# Objects without a name of their own; their holders are named instead.
CONTAINERS = (dict, list, tuple, set, staticmethod)
DEEPEST = 3
# What holds the variables of functions at work.
RUNNING = (FrameType, GeneratorType, CoroutineType, AsyncGeneratorType)


class Binding(NamedTuple):
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
    for cls in model_classes():
        module = sys.modules.get(cls.__module__)
        if getattr(module, cls.__name__, None) is cls:
            found[id(vars(module))] = vars(module)
            continue
        for member in list(vars(cls).values()):
            space = getattr(member, "__globals__", None)
            if isinstance(space, dict) and space.get("__name__") == cls.__module__:
                found[id(space)] = space
                break
    return list(found.values())


def model_classes() -> Iterator[type]:
    """mlx.nn.Module, where it is loaded, and every class below it."""
    nn = sys.modules.get("mlx.nn")  # no model is loaded without it
    todo: list[type] = [nn.Module] if nn is not None else []
    seen: set[type] = set()
    while todo:
        cls = todo.pop()
        if cls not in seen:
            seen.add(cls)
            todo += type.__subclasses__(cls)
            yield cls


def survey(
    home: ModuleType, name: str, functions: Iterable[Any]
) -> tuple[list[Binding], list[str]]:
    """The places that any of `functions` is called from, and, for people, who else holds one."""
    wanted = {id(function): function for function in functions}
    spaces = {id(space): space for space in (vars(home), *model_modules(home))}
    places: list[Binding] = []
    above: set[int] = set()  # another's wrappers in a model's module
    reached: set[int] = set()  # classes
    for space in spaces.values():
        held = space.get(name)
        if id(held) in wanted:
            places.append(Binding(held, partial(space.__setitem__, name)))
        while held is not None and id(held) not in wanted:
            above.add(id(held))
            held = getattr(held, "__wrapped__", None)
        if space.get("__name__") != PROGRAM:
            for cls in _classes(space):
                attributes = list(_attributes(cls, wanted))
                places += attributes
                if attributes:
                    reached.add(id(cls))
    others: list[str] = []
    cells: list[CellType] = []
    holders, containers = _holders(wanted, functions)
    for holder in holders:
        if isinstance(holder, CellType):
            cells.append(holder)
        elif type(holder) is dict:  # a module's globals
            others += _aliases(holder, containers, called=name if id(holder) in spaces else "")
        elif isinstance(holder, FunctionType):
            others.append(f"a default of {holder.__module__}.{holder.__qualname__}")
        elif id(holder) not in reached:
            kind = holder if isinstance(holder, type) else type(holder)
            what = "a class" if isinstance(holder, type) else "an object of"
            others.append(f"{what} {kind.__module__}.{kind.__qualname__}")
    for cell, function in _closures(cells):
        owner = function.__globals__
        if str(owner.get("__name__")).partition(".")[0] == OURS:
            continue
        model = id(owner) in spaces and owner.get("__name__") != PROGRAM
        if id(cell.cell_contents) in wanted and (model or id(function) in above):
            places.append(Binding(cell.cell_contents, partial(setattr, cell, "cell_contents")))
        else:
            others.append(f"a closure of {owner.get('__name__')}.{function.__qualname__}")
    return places, sorted(set(others))


def _classes(space: Mapping[str, Any]) -> list[type]:
    """The classes that a module defines, nested ones included."""
    found: list[type] = []
    spaces: list[Mapping[str, Any]] = [space]
    for some in spaces:
        for cls in list(some.values()):
            own = isinstance(cls, type) and cls.__module__ == space.get("__name__")
            if own and cls not in found:
                found.append(cls)
                spaces.append(vars(cls))
    return found


def _holders(wanted: Mapping[int, Any], given: Iterable[Any]) -> tuple[list[Any], dict[int, Any]]:
    """Cells, modules' globals, functions (by their defaults), classes and other objects that hold
    one of `wanted`, directly or in containers; and, by id, `wanted` with these containers. `given`
    is the caller's own: every pass over all objects takes some 30 ms."""
    found: list[Any] = []
    inner = list(wanted.values())
    held = dict(wanted)
    for _ in range(DEEPEST):
        outer: list[Any] = []
        for holder in gc.get_referrers(*inner) if inner else []:
            ours = holder is inner or holder is wanted or holder is held or holder is given
            if ours or id(holder) in held:
                continue
            if type(holder) in CONTAINERS and not (type(holder) is dict and "__spec__" in holder):
                outer.append(holder)
            elif isinstance(holder, FunctionType):
                # Not by its attributes: __wrapped__ is a wrapper's, which closes over it too.
                if id(holder.__defaults__) in held or id(holder.__kwdefaults__) in held:
                    found.append(holder)
            elif not isinstance(holder, (*RUNNING, Binding)):
                found.append(holder)
        held.update((id(container), container) for container in outer)
        inner = outer
    return found, held


def _attributes(cls: type, wanted: Mapping[int, Any]) -> Iterator[Binding]:
    for key, value in list(vars(cls).items()):
        if isinstance(value, staticmethod) and id(value.__func__) in wanted:
            yield Binding(value.__func__, partial(_put_static, cls, key))
        elif id(value) in wanted:
            yield Binding(value, partial(setattr, cls, key))


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

"""Backends: what turns a kernel and an exact workload into a callable.

Each is a module with three functions:

    unavailable() -> str                      "" where it can run here, else the reason in one line
    build(kernel, params, workload) -> Call   raises BackendError where it cannot carry the kernel
    single(launch, name, inputs) -> Run       one launch that belongs to no family's kernel

What a Call takes and returns is the family's: see ops/<family>/signature.py.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx

from .. import ops
from ..device import BACKENDS
from ..errors import BackendError, UsageError
from ..kernels.kernel import Kernel, Launch
from ..ops import Workload
from ..ops.base import Call

__all__ = ["Run", "chain", "dtype_of", "get", "require", "template_of"]

Run = Callable[[Sequence[mx.array]], Sequence[mx.array]]
# Makes a launch, under a name for its kernel, of the inputs that it will be handed, by name.
Make = Callable[[Launch, str, list[str]], Run]


def get(name: str) -> ModuleType:
    """The backend's module. Raises UsageError naming the choices."""
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is none of {', '.join(BACKENDS)}")
    return importlib.import_module(f".{name}", __package__)


def require(kernel: Kernel, backend: str) -> None:
    """Raise BackendError where a backend is not available here, or a launch is not for it."""
    reason = get(backend).unavailable()
    if reason:
        raise BackendError(f"backend {backend!r}: {reason}")
    for spec in kernel.specs:
        if spec.language not in ("metal", backend):
            raise BackendError(
                f"kernel {kernel.id} is for {spec.language} ({spec.file}), not for {backend!r}"
            )


def dtype_of(name: str) -> mx.Dtype:
    """mlx's dtype of that name."""
    dtype: mx.Dtype = getattr(mx, name)
    return dtype


def template_of(launch: Launch) -> list[tuple[str, Any]]:
    """The launch's template arguments as mx.fast.*_kernel takes them."""
    return [
        (name, dtype_of(value) if isinstance(value, str) else value)
        for name, value in launch.template
    ]


def chain(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    languages: tuple[str, ...],
    make: Make,
    *,
    passes_absent: bool = True,
    broadcast: bool = True,
    held: Callable[[mx.array], mx.array] | None = None,
) -> Call:
    """A Call that runs the kernel's launches in order.

    passes_absent: inputs that the workload lacks are handed over as 8-element dummies (a smaller
    one would be in another address space on Metal); else they are left out. broadcast: see
    Op.bind. held: what becomes of an input of the family's `scalars` before it is handed over.
    """
    launches = kernel.launches(workload, params)
    for launch in launches:
        if launch.spec.language not in languages:
            raise BackendError(
                f"kernel {kernel.id}: {launch.spec.file} is written in "
                f"{launch.spec.language}, this backend takes {' or '.join(languages)}"
            )
    op = ops.of(workload)
    while "out" not in {name for name, _, _ in launches[-1].outputs}:
        launches.pop()  # nothing reads what it writes
    absent = op.absent(workload)
    read = frozenset(name for launch in launches for name in launch.spec.inputs)
    arrays_of = op.bind(workload, read, broadcast=broadcast)
    # All arrays of a call lie in one list: what `bind` gives, as far as a launch reads it, dummies,
    # then outputs as they come.
    places = {name: at for at, name in enumerate(op.inputs(workload.variant))}
    size = count = max(at + 1 for name, at in places.items() if name in read)
    dummies: list[mx.array] = []
    for name in absent if passes_absent else ():
        dummy = mx.zeros((8, *[1] * (absent[name].axes - 1)), dtype_of(absent[name].dtype))
        mx.eval(dummy)
        places[name] = size
        size += 1
        dummies.append(dummy)
    scalars = [places[name] for name in op.scalars if name in read] if held else []
    steps = []
    for i, launch in enumerate(launches):
        inputs = [n for n in launch.spec.inputs if passes_absent or n not in absent]
        run = make(launch, f"{kernel.name}_{kernel.id}_{i}", inputs)
        steps.append((run, _picker([places[name] for name in inputs])))
        # Two launches of one call may write `out` only where one is left out.
        for name, _, _ in launch.outputs:
            places[name] = size
            size += 1
    *before, (last, pick_last) = steps
    out = [name for name, _, _ in launches[-1].outputs].index("out")
    as_given = arrays_of is ops.base.as_given

    def call(*arguments: Any) -> mx.array:
        arrays: list[Any] = [*(arguments if as_given else arrays_of(*arguments))[:count], *dummies]
        for at in scalars:
            arrays[at] = held(arrays[at])  # type: ignore[misc]
        for run, pick in before:
            arrays += run(pick(arrays))
        return last(pick_last(arrays))[out]

    def at_once(*arguments: Any) -> mx.array:
        return last(pick_last(arguments))[out]

    return at_once if as_given and not (dummies or scalars or before) else call


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the items at these places."""
    if len(places) == 1:
        (only,) = places
        return lambda items: (items[only],)
    return operator.itemgetter(*places)

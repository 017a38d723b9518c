"""Backends: what turns a kernel and an exact workload into a callable.

Each is a module with two functions:

    unavailable() -> str                      "" where it can run here, else the reason in one line
    build(kernel, params, workload) -> Call   raises BackendError where it cannot carry the kernel

A Call takes (queries, keys, values, scale, mask, sinks): the arrays as mlx-lm passed them, scale a
float32 array of one element, mask and sinks an array or None. It returns [B, Hq, L, Dv].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..device import BACKENDS
from ..errors import BackendError, UsageError
from ..kernel import Kernel, Launch
from ..workload import Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Call", "Run", "chain", "dtype_of", "get", "template_of"]

Call = Callable[
    [mx.array, mx.array, mx.array, mx.array, "mx.array | None", "mx.array | None"], mx.array
]
Run = Callable[[Sequence[mx.array]], Sequence[mx.array]]


def get(name: str) -> ModuleType:
    """The backend's module. Raises UsageError naming the choices."""
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is none of {', '.join(BACKENDS)}")
    return importlib.import_module(f".{name}", __package__)


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
    make: Callable[[Launch, str], Run],
) -> Call:
    """A Call that runs the kernel's launches in order, each made by `make(launch, name)`.

    Inputs that the workload lacks (no array mask, no sinks) are 8-element dummies: a smaller one
    would be in another address space on Metal.
    """
    launches = kernel.launches(workload, params)
    for launch in launches:
        if launch.stage.language not in languages:
            raise BackendError(
                f"kernel {kernel.id}: stage {launch.stage.file} is written in "
                f"{launch.stage.language}, this backend takes {' or '.join(languages)}"
            )
    dtype = dtype_of(workload.dtype)
    no_mask = mx.zeros((8, 1, 1, 1), mx.bool_)
    no_sinks = mx.zeros((8,), dtype)
    mx.eval(no_mask, no_sinks)
    masked = workload.mask in ("bool", "additive")
    rows = (workload.batch, workload.q_heads, workload.q_len)
    steps = [
        (make(launch, f"{kernel.name}_{kernel.id}_{i}"), launch.stage.inputs, launch.outputs)
        for i, launch in enumerate(launches)
    ]

    def call(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: mx.array,
        mask: mx.array | None,
        sinks: mx.array | None,
    ) -> mx.array:
        if masked and mask is not None:
            if mask.dtype != mx.bool_:
                mask = mask.astype(dtype)
            mask = mx.broadcast_to(mask, (*rows, keys.shape[2]))
        else:
            mask = no_mask
        arrays = {
            "queries": queries,
            "keys": keys,
            "values": values,
            "scale": scale,
            "mask": mask,
            "sinks": no_sinks if sinks is None else sinks,
        }
        for run, inputs, outputs in steps:
            results = run([arrays[name] for name in inputs])
            for (name, _, _), result in zip(outputs, results, strict=True):
                arrays[name] = result
        return arrays["out"]

    return call

"""Backends: what turns a kernel and an exact workload into a callable.

Each is a module with two functions:

    unavailable() -> str                      "" where it can run here, else the reason in one line
    build(kernel, params, workload) -> Call   raises BackendError where it cannot carry the kernel

A Call takes (queries, keys, values, scale, mask, sinks): the arrays as mlx-lm passed them (keys and
values of a quantised cache are 3-tuples), scale a float32 array of one element, mask and sinks an
array or None. It returns [B, Hq, L, Dv].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..device import BACKENDS
from ..errors import BackendError, UsageError
from ..kernels.kernel import INPUTS, Kernel, Launch
from ..ops.attention.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Call",
    "Operand",
    "Run",
    "chain",
    "dtype_of",
    "get",
    "kv_len",
    "operands",
    "require",
    "template_of",
]

Operand = mx.array | Sequence[mx.array]  # keys or values: an array, or a quantised cache's three
Call = Callable[
    [mx.array, Operand, Operand, mx.array, "mx.array | None", "mx.array | None"], mx.array
]
Run = Callable[[Sequence[mx.array]], Sequence[mx.array]]


def get(name: str) -> ModuleType:
    """The backend's module. Raises UsageError naming the choices."""
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is none of {', '.join(BACKENDS)}")
    return importlib.import_module(f".{name}", __package__)


def require(kernel: Kernel, backend: str) -> None:
    """Raise BackendError where a backend is not available here, or a stage is not for it."""
    reason = get(backend).unavailable()
    if reason:
        raise BackendError(f"backend {backend!r}: {reason}")
    for stage in kernel.stages:
        if stage.language not in ("metal", backend):
            raise BackendError(
                f"kernel {kernel.id} is for {stage.language} ({stage.file}), not for {backend!r}"
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


def operands(
    op: str,
    queries: mx.array,
    keys: Any,
    values: Any,
    scale: mx.array,
    mask: mx.array | None,
    sinks: mx.array | None,
) -> list[Any]:
    """What a Call was handed, in the order of the family's INPUTS."""
    if op == "attention_quantized":
        return [queries, *keys, *values, mask, scale]
    if op == "attention_latent":
        return [queries, keys, mask, sinks, scale]
    return [queries, keys, values, mask, sinks, scale]


def kv_len(keys: Any) -> int:
    """The number of keys of an array, or of a quantised cache's words."""
    length: int = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    return length


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
    names = INPUTS[kernel.family]
    steps = [
        (make(launch, f"{kernel.name}_{kernel.id}_{i}"), launch.stage.inputs, launch.outputs)
        for i, launch in enumerate(launches)
    ]

    def call(
        queries: mx.array,
        keys: Operand,
        values: Operand,
        scale: mx.array,
        mask: mx.array | None,
        sinks: mx.array | None,
    ) -> mx.array:
        if masked and mask is not None:
            if mask.dtype != mx.bool_:
                mask = mask.astype(dtype)
            mask = mx.broadcast_to(mask, (*rows, kv_len(keys)))
        else:
            mask = no_mask
        sinks = no_sinks if sinks is None else sinks
        given = operands(workload.op, queries, keys, values, scale, mask, sinks)
        arrays: dict[str, mx.array] = dict(zip(names, given, strict=True))
        for run, inputs, outputs in steps:
            results = run([arrays[name] for name in inputs])
            for (name, _, _), result in zip(outputs, results, strict=True):
                arrays[name] = result
        return arrays["out"]

    return call

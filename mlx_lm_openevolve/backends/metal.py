"""The Metal backend: mx.fast.metal_kernel on an Apple GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from .. import ops
from ..device import release, version_of
from ..errors import BackendError, KernelError
from ..kernels.kernel import Kernel, Launch
from ..ops import Workload
from ..ops.base import Call
from . import Run, chain, dtype_of, template_of

__all__ = ["build", "fitting", "single", "those_that_fit", "unavailable"]

X = TypeVar("X")


# The first release whose metal_kernel takes compile_options, and whose GPU errors raise: see
# SUPPORTED in runtime/api.py.
_OLDEST = (0, 32)


def unavailable() -> str:
    """ "" where MLX has a Metal GPU and is new enough, else the reason."""
    if not mx.metal.is_available():
        return "MLX sees no Metal GPU on this machine"
    version = version_of("mlx")
    new_enough = release(version) >= _OLDEST
    return "" if new_enough else f"mlx {version} is older than 0.32"


def build(kernel: Kernel, params: Mapping[str, int], workload: Workload) -> Call:
    """The kernel as a callable for one exact workload; compiled at its first evaluation."""
    reason = unavailable()
    if reason:
        raise BackendError(reason)
    contiguous = ops.of(workload).row_contiguous

    def make(launch: Launch, name: str, inputs: list[str]) -> Run:
        return _make(launch, name, inputs, contiguous)

    return chain(kernel, params, workload, ("metal",), make)


def single(launch: Launch, name: str, inputs: list[str]) -> Run:
    """One launch of our own, of row-contiguous inputs by name, under a name for its kernel."""
    return _make(launch, name, inputs, True)


def _make(launch: Launch, name: str, inputs: list[str], contiguous: bool) -> Run:
    spec = launch.spec
    function: Any = mx.fast.metal_kernel(
        name=name,
        input_names=inputs,
        output_names=[output for output, _, _ in launch.outputs],
        source=spec.source,
        header=spec.header,
        # A KV cache hands over slices of a longer buffer: copying them would double the traffic.
        ensure_row_contiguous=contiguous,
        compile_options={"math_mode": spec.math_mode},
    )
    template, grid, threadgroup = template_of(launch), launch.grid, launch.threadgroup
    shapes = [shape for _, shape, _ in launch.outputs]
    dtypes = [dtype_of(dtype) for _, _, dtype in launch.outputs]
    return lambda arrays: function(
        inputs=arrays,
        template=template,
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=shapes,
        output_dtypes=dtypes,
    )


# Settings whose threadgroup memory is asked for at once: a run of the compiler takes 0.2 s for one.
_FEW = 8
# Bytes of threadgroup memory by kernel, file and template arguments.
_threadgroup: dict[tuple[str, str, Any], int] = {}


def fitting(
    kernel: Kernel, workload: Workload, settings: Sequence[dict[str, int]]
) -> list[dict[str, int]]:
    """The params whose launches fit Metal's threadgroup memory; the others do not compile. One run
    of metalhost's compiler says it of all. Where it cannot, or is absent, they count as fitting."""
    from ..metalhost import THREADGROUP_BYTES, threadgroup_bytes  # not needed to serve

    launches = [_templates(kernel, workload, params) for params in settings]
    for spec in kernel.specs:
        used = {key for launched in launches for key in launched if key[0] == spec.file}
        new = [key for key in used if (kernel.id, *key) not in _threadgroup]
        if not new or spec.language != "metal":
            continue
        templates = [
            [(name, dtype_of(v) if isinstance(v, str) else v) for name, v in template]
            for _, template in new
        ]
        sizes = threadgroup_bytes(spec.source, spec.header, templates) or [0] * len(new)
        for key, size in zip(new, sizes, strict=True):
            _threadgroup[(kernel.id, *key)] = size
    return [
        params
        for params, launched in zip(settings, launches, strict=True)
        if all(_threadgroup.get((kernel.id, *key), 0) <= THREADGROUP_BYTES for key in launched)
    ]


def those_that_fit(
    kernel: Kernel,
    workload: Workload,
    items: Iterable[X],
    params: Callable[[X], dict[str, int]],
) -> Iterator[X]:
    """The items whose `params` fit (see `fitting`), in their order; the compiler is asked for a few
    at a time, and for no more than are wanted."""
    left = iter(items)
    while some := list(itertools.islice(left, _FEW)):
        fit = fitting(kernel, workload, [params(item) for item in some])
        yield from (item for item in some if params(item) in fit)


def _templates(kernel: Kernel, workload: Workload, params: Mapping[str, int]) -> list[Any]:
    """(file, template arguments) of each launch, none where params cannot be launched."""
    try:
        return [(x.spec.file, x.template) for x in kernel.launches(workload, params)]
    except KernelError:
        return []

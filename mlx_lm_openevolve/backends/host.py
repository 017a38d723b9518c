"""The host backend: a Metal kernel on the CPU, through metalhost.

It proves that a kernel is right; it is never faster. Inside MLX's lazy graph it evaluates its
inputs, which cannot be done under mx.compile or vmap: the call then raises BackendError and the
dispatcher returns the original. Gradients are those of the original.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import mlx.core as mx

from .. import metalhost, ops
from ..errors import BackendError
from ..kernels import lookup
from ..kernels.kernel import Kernel, Launch
from ..ops import Workload
from ..ops.base import Call
from . import Run, chain, dtype_of, template_of

__all__ = ["build", "single", "unavailable"]


def unavailable() -> str:
    """ "" where a clang is at hand, else the reason."""
    available, reason = metalhost.compiler_available()
    return "" if available else reason


def build(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    *,
    sanitize: bool = False,
    launches: list[metalhost.LaunchResult] | None = None,
    seed: int = 0,
) -> Call:
    """The kernel as a callable for one exact workload.

    sanitize: run with every check of metalhost; a finding raises BackendError with its text.
    launches: where given, every launch's findings and counters are appended to it instead.
    """
    reason = unavailable()
    if reason:
        raise BackendError(reason)

    def make(launch: Launch, name: str, inputs: list[str]) -> Run:
        contiguous = ops.of(workload).row_contiguous
        trusted = _shipped(kernel.id)
        return _make(launch, name, inputs, sanitize, launches, seed, trusted, contiguous)

    call = chain(kernel, params, workload, ("metal",), make)
    return ops.of(workload).differentiable(workload, call)


def single(launch: Launch, name: str, inputs: list[str]) -> Run:
    """One launch of our own, of row-contiguous inputs by name, under a name for its kernel."""
    return _make(launch, name, inputs, False, None, 0, True, True)


@functools.lru_cache(maxsize=1024)
def _shipped(id: str) -> bool:
    """Whether a kernel came with this package. All others need a sandbox to run on the CPU."""
    return lookup.shipped().kernel(id) is not None


def _make(
    launch: Launch,
    name: str,
    names: list[str],
    sanitize: bool,
    launches: list[metalhost.LaunchResult] | None,
    seed: int,
    trusted: bool,
    contiguous: bool,
) -> Run:
    spec = launch.spec
    function = metalhost.metal_kernel(
        name=name,
        input_names=names,
        output_names=[output for output, _, _ in launch.outputs],
        source=spec.source,
        header=spec.header,
        ensure_row_contiguous=contiguous,
        math_mode=spec.math_mode,
    )

    def run(inputs: Sequence[mx.array]) -> Sequence[mx.array]:
        try:
            mx.eval(*inputs)
        except ValueError as error:
            raise BackendError(f"the host backend cannot run while tracing: {error}") from None
        done = function(
            inputs=list(inputs),
            template=template_of(launch),
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            output_shapes=[shape for _, shape, _ in launch.outputs],
            output_dtypes=[dtype_of(dtype) for _, _, dtype in launch.outputs],
            sanitize=sanitize,
            count=launches is not None,
            seed=seed,
            trusted=trusted,
        )
        if launches is not None:
            launches.append(done)
        if not done.outputs or (not done.ok and launches is None):
            finding = next((f for f in done.findings if not f.benign), "no output")
            raise BackendError(f"{spec.file}: {finding}")
        return done.outputs

    return run

"""The Metal backend: mx.fast.metal_kernel on an Apple GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..device import version_of
from ..errors import BackendError
from ..kernels.kernel import Kernel, Launch
from ..ops import Workload
from ..ops.base import Call
from . import Run, chain, dtype_of, template_of

__all__ = ["build", "unavailable"]


# The first release whose metal_kernel takes compile_options, and whose GPU errors raise: see
# SUPPORTED_ON_MACOS in runtime/api.py.
_OLDEST = (0, 32)


def unavailable() -> str:
    """ "" where MLX has a Metal GPU and is new enough, else the reason."""
    if not mx.metal.is_available():
        return "MLX sees no Metal GPU on this machine"
    version = version_of("mlx")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return "" if numbers >= _OLDEST else f"mlx {version} is older than 0.32, which macOS needs"


def build(kernel: Kernel, params: Mapping[str, int], workload: Workload) -> Call:
    """The kernel as a callable for one exact workload; compiled at its first evaluation."""
    reason = unavailable()
    if reason:
        raise BackendError(reason)
    return chain(kernel, params, workload, ("metal",), _make)


def _make(launch: Launch, name: str, inputs: list[str]) -> Run:
    spec = launch.spec
    function: Any = mx.fast.metal_kernel(
        name=name,
        input_names=inputs,
        output_names=[output for output, _, _ in launch.outputs],
        source=spec.source,
        header=spec.header,
        # A KV cache hands over slices of a longer buffer: copying them would double the traffic.
        ensure_row_contiguous=False,
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

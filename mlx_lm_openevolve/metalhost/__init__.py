"""Metal kernels on the CPU: compiled, run, sanitised and counted on any machine.

    body = "uint i = thread_position_in_grid.x; y[i] = 2 * x[i];"
    kernel = metal_kernel("double", ["x"], ["y"], body)
    launch = kernel([x], grid=(n, 1, 1), threadgroup=(64, 1, 1), output_shapes=[x.shape],
                    output_dtypes=[x.dtype])
    launch.outputs, launch.findings

A launch runs in a process of its own: an endless loop, a stray pointer or a deadlock of a kernel is
a finding, never an error of the caller's.
"""

from __future__ import annotations

from .counters import Counters, Reads
from .findings import Finding, Place
from .function import MetalFunction, metal_function
from .kernel import MetalKernel, check_source, metal_kernel
from .launch import LaunchResult
from .threadgroup import THREADGROUP_BYTES, threadgroup_bytes
from .toolchain import compiler_available

__all__ = [
    "THREADGROUP_BYTES",
    "Counters",
    "Finding",
    "LaunchResult",
    "MetalFunction",
    "MetalKernel",
    "Place",
    "Reads",
    "check_source",
    "compiler_available",
    "metal_function",
    "metal_kernel",
    "threadgroup_bytes",
]

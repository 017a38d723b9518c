"""Trouble: which errors of MLX are the machine's, and say nothing about the kernel at hand.

    what a call raised --trouble--> MachineError, GpuTimeout, or None: the kernel's own

MLX raises RuntimeError for nearly everything, so the text decides. Where it comes from:

* Metal: `CommandEncoder::commit` in mlx/backend/metal/device.cpp puts "[METAL] Command buffer
  execution failed: " before the driver's text, which ends in IOGPU's number and name of the fault;
  it also says "Failed to make new command queue", "No Metal device available", and "Unable to build
  metal library from source" or "Unable to load kernel", with the compiler's own words in the next
  line: an XPC error there means that its service was lost. metal/allocator.cpp says
  "[metal::malloc] Resource limit" and "[malloc] Unable to allocate" (once "[malloc_or_wait]").
* CUDA: `check_cuda_error` in mlx/backend/cuda/utils.cpp says "<call> failed: " and what
  cudaGetErrorString or cuGetErrorString say: NVIDIA's documentation of cudaError_t lists them. Its
  likes for cuDNN and NVRTC say their status by name, that for cuBLAS "failed with code: <number>.".

The rest is a kernel's: page faults and illegal accesses, launches that fail, what does not compile.
Only whole, known sentences count, at the place where MLX puts them: a compiler quotes the source,
and a source may say anything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ..errors import MachineError

__all__ = ["GpuTimeout", "machines", "trouble"]


class GpuTimeout(MachineError):
    """A GPU or its driver ended what ran for its time: it was busy, or the kernel does not end. A
    kernel's fault only where that happens to it again in a process of its own."""


_METAL = r"\[METAL\] Command buffer execution failed: "
_CUDA = r"(?:\w+(?:->|\.))?\w+(?:\(.*\))? failed: "
# Of its numbers 1 is NOT_INITIALIZED, what it says where a handle found no memory; 3 ALLOC_FAILED.
_CUBLAS = r"cublas\w+\(.*\) failed with code: "

# Ended for its time: by the machine's load, or by a kernel that does not end.
_TIMEOUT = (
    _METAL + r".*kIOGPUCommandBufferCallbackError(?:Timeout|Hang)\b",
    _METAL + r"Caused GPU (?:Timeout|Hang) Error",
    _CUDA + r"the launch timed out and was terminated",
)

_MACHINE = (
    # No memory left.
    _METAL + r".*kIOGPUCommandBufferCallbackErrorOutOfMemory\b",
    _METAL + r"Insufficient Memory",
    r"\[metal::malloc\] Resource limit",
    r"\[malloc(?:_or_wait)?\] Unable to allocate",
    _CUDA + r"(?:out of memory|NVRTC_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_\w*ALLOC(?:ATION)?_FAILED)",
    _CUBLAS + r"(?:1|3)\.",
    r"std::bad_alloc",
    # Others go first, or did wrong: a display, another process, what this one ran before.
    _METAL + r".*kIOGPUCommandBufferCallbackError"
    r"(?:ImpactingInteractivity|SubmissionsIgnored|InnocentVictim|BackgroundExecutionNotPermitted)\b",
    _METAL + r"(?:Impacting Interactivity|Discarded \(victim of|Ignored \(for causing prior)",
    # The compiler's service was lost.
    r"\[metal::Device\] Unable to (?:build|load) [^\n]*\n[A-Z][A-Za-z ]*\bXPC_ERROR_CONNECTION_\w+",
    r"\[metal::\w+\] Failed to make new command queue",
    r"\[metal::load_device\] No Metal device available",
    # The device or its driver was lost, or taken.
    _CUDA + r"(?:no CUDA-capable device is detected"
    r"|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|driver shutting down|initialization error|system not yet initialized"
    r"|CUDA driver version is insufficient|system has unsupported display driver"
    r"|uncorrectable (?:ECC|NVLink) error|MPS (?:client|server) )",
)


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, text) for pattern in patterns)


def trouble(error: BaseException) -> MachineError | None:
    """What an error says of the machine, in one line; None where it is the kernel's."""
    if isinstance(error, MachineError):
        return error
    text = str(error).strip()
    line = " ".join(text.split())[:300]
    if isinstance(error, MemoryError):
        return MachineError(line or "no memory left")
    if not isinstance(error, RuntimeError):
        return None
    if _matches(text, _TIMEOUT):
        return GpuTimeout(line)
    return MachineError(line) if _matches(text, _MACHINE) else None


@contextlib.contextmanager
def machines() -> Iterator[None]:
    """Raise the machine's trouble as MachineError (GpuTimeout for a GPU's), all else as it is."""
    try:
        yield
    except Exception as error:
        found = trouble(error)
        if found is None or found is error:
            raise
        raise found from None

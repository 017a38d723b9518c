"""Every error this library raises on purpose.

    OpenEvolveError
    |-- UsageError                an argument names nothing we know
    |-- UnsupportedVersionError   mlx or mlx-lm is missing or older than supported
    |-- WorkloadError             a workload or its slug is malformed
    |-- KernelError               a kernel folder is malformed
    |-- RegistryError             a registry cannot be written (reading quarantines instead)
    |-- BackendError              a backend is absent here, or cannot carry a kernel
    `-- MachineError              a full disk, a tool that was killed, a GPU without memory

A call of attention never raises any of these: it runs on MLX's SDPA instead.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "KernelError",
    "MachineError",
    "OpenEvolveError",
    "RegistryError",
    "UnsupportedVersionError",
    "UsageError",
    "WorkloadError",
    "interrupted",
]


NO_MLX = (
    "MLX is not installed: on Linux it comes with an extra, pip install"
    " 'mlx-lm-openevolve[cuda13]', [cuda12] or [cpu], from a copy of the repository pip install"
    " '.[cuda13]'; on macOS it needs Apple silicon"
)


class OpenEvolveError(Exception):
    """Base of all errors raised by mlx_lm_openevolve; the message is one clear line."""


class UsageError(OpenEvolveError, ValueError):
    """An argument names nothing we know; the message names the choices."""


class UnsupportedVersionError(OpenEvolveError, ImportError):
    """mlx or mlx-lm is missing or older than supported."""


class WorkloadError(OpenEvolveError, ValueError):
    """A workload or its slug is malformed."""


class KernelError(OpenEvolveError, ValueError):
    """A kernel folder is malformed; the message names the file and the field."""


class NewerFormatError(KernelError):
    """A kernel folder that a newer release wrote: not malformed, but not for this one."""


class RegistryError(OpenEvolveError, OSError):
    """A registry cannot be written."""


class BackendError(OpenEvolveError, RuntimeError):
    """A backend is not available on this machine, or cannot carry this kernel."""


class MachineError(OpenEvolveError, OSError):
    """The machine failed, no kernel: a full disk, a folder without access, a tool that was killed,
    a GPU without memory. That says nothing about the kernel at hand."""


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is, or came of, an interrupt: what is being cleaned up, and Python before
    3.12 while it makes a class, turn a KeyboardInterrupt into something else."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


class GateTimeout(OpenEvolveError):
    """The time, memory or steadiness at hand did not suffice for a verdict."""


class GateMemory(GateTimeout):
    """The memory at hand did not suffice for a verdict."""

"""Limits: the gate is a guest in someone's process: what it may take, and how it leaves."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import mlx.core as mx

from ..device import Device, working_set
from ..errors import GateTimeout

__all__ = ["Clock", "free_memory", "memory_for", "undisturbed"]


_HOST_MEMORY = 2 << 30


class Clock:
    """Seconds that a gate may take; `check` raises GateTimeout when they are spent. `wait` bounds
    all that passes, with what does not count (`paused`)."""

    def __init__(self, seconds: float, wait: float = math.inf) -> None:
        self.seconds = seconds
        start = time.monotonic()
        self._end, self._latest = start + seconds, start + wait

    @property
    def left(self) -> float:
        """Seconds left, below zero when they are spent."""
        return min(self._end, self._latest) - time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs for the first time: a cold compiler takes 0.2 to 0.8 s for a pipeline on Metal,
        which says nothing about the kernel and does not count."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - start

    def check(self, step: str = "") -> None:
        """Raise GateTimeout where no time is left."""
        if self.left <= 0:
            raise GateTimeout(f"{step or 'the gate'}: {self.seconds:.3g} s do not suffice")


def free_memory(device: Device) -> int:
    """Bytes of a device's memory that this process does not hold. Where memory is shared with the
    rest of the machine (Metal) only the driver's recommended working set counts."""
    return min(device.memory, working_set() or device.memory) - mx.get_active_memory()


def memory_for(device: Device, elsewhere: int = 0) -> int:
    """Bytes that the gate may take on a device: an eighth of its memory, and half of what is free.
    elsewhere: bytes in use by the process that asked this one."""
    if not device.memory:
        return _HOST_MEMORY
    return max(0, min(device.memory // 8, (free_memory(device) - elsewhere) // 2))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A guest's manners: the caller's stream is idle before anything starts; afterwards MLX's cache
    of freed buffers holds none of the gate's. The reported peak memory counts what the gate took:
    a peak cannot be set, only reached, and that would take the memory once more."""
    mx.synchronize()
    cached = mx.get_cache_memory()
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # after a fault of the GPU nothing works: which it
            _leave(cached)  # was, the first error says
        raise
    _leave(cached)


def _leave(cached: int) -> None:
    mx.synchronize()
    if mx.get_cache_memory() > cached + (64 << 20):
        mx.clear_cache()

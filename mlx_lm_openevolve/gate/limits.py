"""Limits: the gate is a guest in someone's process: what it may take, and how it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import mlx.core as mx

from ..device import Device
from ..errors import GateTimeout

__all__ = ["Clock", "memory_for", "undisturbed"]


_HOST_MEMORY = 2 << 30


class Clock:
    """Seconds that a gate may take; `check` raises GateTimeout when they are spent."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, below zero when they are spent."""
        return self._end - time.monotonic()

    def check(self, step: str = "") -> None:
        """Raise GateTimeout where no time is left."""
        if self.left <= 0:
            raise GateTimeout(f"{step or 'the gate'}: {self.seconds:.3g} s do not suffice")


def memory_for(device: Device) -> int:
    """Bytes that the gate may take on a device."""
    if not device.memory:
        return _HOST_MEMORY
    return max(0, min(device.memory // 8, (device.memory - mx.get_active_memory()) // 2))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave no trace: the caller's stream is idle before anything starts; afterwards the reported
    peak memory is what it was, and MLX's cache of freed buffers holds none of the gate's."""
    mx.synchronize()
    peak, cached = mx.get_peak_memory(), mx.get_cache_memory()
    try:
        yield
    finally:
        mx.synchronize()
        if mx.get_peak_memory() > peak:
            # A peak cannot be set, only reached: so much was allocated before, so it is again.
            mx.reset_peak_memory()
            for _ in range(3):  # what is freed late counts as active at first
                missing = peak - mx.get_active_memory()
                if mx.get_peak_memory() >= peak or missing <= 0:
                    break
                mx.eval(mx.zeros((missing,), mx.uint8))
                mx.synchronize()
        if mx.get_cache_memory() > cached + (64 << 20):
            mx.clear_cache()

"""Timing: two calls on one clock, paired, interleaved and honest about the noise.

    Arm(timing inputs, call) --paired(a, b)--> Comparison (ratio, interval)

One sample is the wall time of a chain of calls, each result being the next first argument, so that
no call can be dropped, merged or replayed; the chain walks through more buffers than the chip's
last-level cache holds. Samples come in blocks A B B A; a block's ratio cancels slow drift, and the
interval is a bootstrap over the blocks' median.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..intervals import median_interval
from ..ops.base import Call, TimingInputs

__all__ = ["CONFIDENCE", "Arm", "Comparison", "bandwidth", "paired", "room"]

CONFIDENCE = 0.99
MIN_BLOCKS, _BLOCKS, MAX_BLOCKS = 10, 16, 60
CHAIN = 64
SAMPLE_SECONDS = 2e-3
# Results handed to the GPU while the next calls are being built, as a model's layers do.
_AHEAD = 8


@dataclass(frozen=True)
class Comparison:
    """Baseline (a) against candidate (b): seconds of one call in every sample, a's time over b's,
    and the interval of that ratio at CONFIDENCE."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    ratio: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Ratio, interval, and for both arms mean, std, min, max and trials."""
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "baseline": _summary(self.a),
            "candidate": _summary(self.b),
        }

    def samples(self) -> dict[str, list[float]]:
        """The raw samples of both arms, in seconds, to four digits."""
        arms = (("baseline", self.a), ("candidate", self.b))
        return {name: [float(f"{value:.4g}") for value in arm] for name, arm in arms}


def _summary(seconds: tuple[float, ...]) -> dict[str, Any]:
    x = np.array(seconds)
    return {
        "mean": float(x.mean()),
        "std": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
        "min": float(x.min()),
        "max": float(x.max()),
        "trials": len(x),
    }


class Arm:
    """One contender: a call on timing inputs, and the last thing it computed, for a check."""

    def __init__(self, inputs: TimingInputs, call: Call) -> None:
        self._inputs, self._call = inputs, call
        self._at = 0
        self.last: tuple[int, mx.array, mx.array] | None = None  # buffer, first argument, result

    def seconds(self, calls: int) -> float:
        """Wall time of one call in a chain of `calls`."""
        inputs, call = self._inputs, self._call
        state, rest = inputs.first, inputs.rest
        mx.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            at = self._at % len(rest)
            self._at += 1
            first = state
            out = call(first, *rest[at])
            state = inputs.next(out)
            if i % _AHEAD == _AHEAD - 1:
                mx.async_eval(state)  # type: ignore[no-untyped-call]
        mx.eval(state)
        elapsed = time.perf_counter() - start
        self.last = (at, first, out)
        return elapsed / calls

    def recheck(self, limit: float) -> str:
        """What is wrong with the last result that was timed, "" where nothing is."""
        assert self.last is not None
        return self._inputs.recheck(*self.last, limit)


def warm_up(arms: tuple[Arm, ...], seconds: float) -> float:
    """Run the arms in turn until three samples in a row lie within 5%, or for `seconds`; returns
    the seconds of the slowest arm's call."""
    for arm in arms:
        arm.seconds(2)  # compiles; what that takes says nothing about a call
    start, history = time.perf_counter(), [[arm.seconds(2)] for arm in arms]
    while True:
        for arm, times in zip(arms, history, strict=True):
            times.append(arm.seconds(calls_for(times[-1])))
        steady = all(len(t) > 3 and max(t[-3:]) < 1.05 * min(t[-3:]) for t in history)
        if steady or time.perf_counter() - start > seconds:
            return max(times[-1] for times in history)


def calls_for(seconds: float) -> int:
    """Length of a chain so that a sample lasts SAMPLE_SECONDS."""
    return int(min(256, max(2, round(SAMPLE_SECONDS / max(seconds, 1e-7)))))


def paired(a: Arm, b: Arm, call_seconds: float, budget: float, seed: int) -> Comparison | None:
    """Compare two arms in as many A B B A blocks as `budget` seconds hold; None where they hold
    fewer than MIN_BLOCKS. The number of blocks is fixed before the first sample is seen."""
    # Start and end of a chain do not overlap with the GPU's work: the longer, the truer.
    affordable = int(budget / (4 * _BLOCKS * max(call_seconds, 1e-9)))
    calls = max(calls_for(call_seconds), min(CHAIN, affordable))
    blocks = int(budget / (4 * calls * call_seconds))
    if blocks < MIN_BLOCKS:
        return None
    blocks = min(blocks, MAX_BLOCKS)
    times = np.array(
        [[arm.seconds(calls) for arm in (a, b, b, a)] for _ in range(blocks)], np.float64
    )
    ratios = (times[:, 0] + times[:, 3]) / (times[:, 1] + times[:, 2])
    low, high = median_interval(ratios.tolist(), CONFIDENCE, seed)
    return Comparison(
        a=tuple(times[:, [0, 3]].ravel().tolist()),
        b=tuple(times[:, [1, 2]].ravel().tolist()),
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
    )


def room(cache_bytes: int, memory: int) -> tuple[int, int]:
    """What to ask `bandwidth` for, and the bytes that are left for inputs, of the `memory` that a
    comparison may take. Where that is little the probe is smaller, as the inputs are: it measures
    the cache's bandwidth then, and the floor is lower."""
    cache = min(cache_bytes, memory // 16)
    return cache, memory - _probe_bytes(cache)


def _probe_bytes(cache_bytes: int) -> int:
    """Bytes that `bandwidth` takes: an array larger than the cache, and its copy."""
    return 2 * max(32 << 20, 2 * cache_bytes)


@functools.cache
def bandwidth(cache_bytes: int) -> float:
    """Bytes a second that a copy larger than the last-level cache moves here, the best of five."""
    x = mx.zeros((_probe_bytes(cache_bytes) // 2 // 4,), mx.float32)
    mx.eval(x)
    best = float("inf")
    for _ in range(5):
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(-x)
        best = min(best, time.perf_counter() - start)
    return 2 * x.nbytes / best

"""Timing: two calls on one clock, paired, interleaved and honest about the noise.

    Arm(timing inputs, call) --paired(a, b)--> Comparison (ratio, interval)

One sample is the wall time of a chain of calls, each result being the next first argument, so that
every call waits on the GPU for the one before, as a model's layers do, and none can be dropped,
merged or replayed; the chain walks through more buffers than the chip's last-level cache holds.
Samples come in blocks A B B A or B A A B, drawn by lot, with a drawn gap before each: a block's
ratio cancels slow drift, and what beats in time with the blocks meets both arms alike. The interval
is a bootstrap over the blocks' median.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..intervals import median_intervals
from ..ops.base import Call, TimingInputs

__all__ = ["CONFIDENCE", "RECHECKED", "Arm", "Comparison", "Timed", "bandwidth", "paired", "room"]

# Two such intervals (at the upper end and the sealed workload), three times at most, let a kernel
# that is exactly 1.02 times as fast pass once in some thousands: benchmarks/accept_rule.py.
CONFIDENCE = 0.995
MIN_BLOCKS, _BLOCKS, MAX_BLOCKS = 10, 16, 60
CHAIN = 64
# Not shorter: one 120 Hz pulse of a display in every block would split the ratios in two heaps.
SAMPLE_SECONDS = 2.5e-3
RECHECKED = 4  # results of the contender that are checked again
# The gap before a block is drawn from zero to so many seconds.
GAP_SECONDS = 2e-3
# Results handed to the GPU while the next calls are being built, as a model's layers do.
_AHEAD = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Baseline (a) against candidate (b): seconds of one call in every sample, a's time over b's,
    and the interval of that ratio at CONFIDENCE."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"

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


class Timed(Protocol):
    """What can be compared."""

    def seconds(self, calls: int) -> float:
        """Wall time of one call in a chain of `calls`."""
        ...


class Arm:
    """One contender: a call on timing inputs. `keep` results of all that are timed, drawn by lot,
    are held for a check; which ones, nothing can know beforehand."""

    def __init__(self, inputs: TimingInputs, call: Call, keep: int = 0) -> None:
        self._inputs, self._call, self._keep = inputs, call, keep
        self._at = self._samples = 0
        self._draws = np.random.default_rng()  # from the system's entropy: no seed to foresee
        self.kept: list[tuple[int, mx.array, mx.array]] = []  # buffer, first argument, result

    def seconds(self, calls: int) -> float:
        """Wall time of one call in a chain of `calls`."""
        inputs, call = self._inputs, self._call
        state, rest = inputs.first, inputs.rest
        drawn = int(self._draws.integers(calls))
        mx.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            at = self._at % len(rest)
            self._at += 1
            first = state
            out = call(first, *rest[at])
            if i == drawn:
                held = (at, first, out)
            state = inputs.next(out)
            if i % _AHEAD == _AHEAD - 1:
                mx.async_eval(state)  # type: ignore[no-untyped-call]
        mx.eval(state)
        elapsed = time.perf_counter() - start
        self._hold(held)
        return elapsed / calls

    def _hold(self, result: tuple[int, mx.array, mx.array]) -> None:
        """Keep a fair sample of one result from each chain (reservoir sampling)."""
        self._samples += 1
        if len(self.kept) < self._keep:
            self.kept.append(result)
        elif (place := int(self._draws.integers(self._samples))) < self._keep:
            self.kept[place] = result

    def recheck(self) -> str:
        """What is wrong with the results that were kept, "" where nothing is."""
        assert self.kept
        return next(filter(None, (self._inputs.recheck(*kept) for kept in self.kept)), "")


def warm_up(arms: tuple[Timed, ...], seconds: float) -> float:
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


def paired(
    a: Timed,
    b: Timed,
    call_seconds: float,
    budget: float,
    seed: int,
    *,
    chain: int = CHAIN,
    most: int = MAX_BLOCKS,
) -> Comparison | None:
    """Compare two arms in as many blocks as `budget` seconds hold, at most `most`, of chains of at
    most `chain` calls, in an order drawn with `seed`; None where they hold fewer than MIN_BLOCKS.
    The number of blocks is fixed before the first sample is seen."""
    calls, blocks = size(call_seconds, budget, chain, most)
    if blocks < MIN_BLOCKS:
        return None
    swapped, gaps = drawn(blocks, seed)
    times = np.empty((1, blocks, 4))
    for i, turned in enumerate(swapped):
        time.sleep(gaps[i])
        first, second = (b, a) if turned else (a, b)
        times[0, i] = [arm.seconds(calls) for arm in (first, second, second, first)]
    of_a, of_b = by_arm(times, swapped)
    ratios, low, high = compared(of_a, of_b, seed)
    return Comparison(
        a=tuple(of_a.ravel().tolist()),
        b=tuple(of_b.ravel().tolist()),
        ratio=float(ratios[0]),
        low=float(low[0]),
        high=float(high[0]),
    )


# What `paired` is made of: benchmarks/accept_rule.py runs it on thousands of invented clocks


def size(
    call_seconds: float, budget: float, chain: int = CHAIN, most: int = MAX_BLOCKS
) -> tuple[int, int]:
    """(calls in a chain, blocks) that `budget` seconds hold."""
    # Start and end of a chain do not overlap with the GPU's work: the longer, the truer.
    affordable = int(budget / (4 * _BLOCKS * max(call_seconds, 1e-9)))
    calls = max(calls_for(call_seconds), min(chain, affordable))
    return calls, min(most, int(budget / (4 * calls * call_seconds + GAP_SECONDS / 2)))


def least(call_seconds: float) -> float:
    """Seconds that hold MIN_BLOCKS."""
    block = 4 * calls_for(call_seconds) * call_seconds + GAP_SECONDS / 2
    return 1.01 * MIN_BLOCKS * block


def drawn(blocks: int, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which blocks are B A A B, and the seconds of the gap before each."""
    rng = np.random.default_rng([seed, 3])
    return rng.random(blocks) < 0.5, rng.random(blocks) * GAP_SECONDS


def by_arm(times: Floats, swapped: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Samples [runs, blocks, 4] in the order in which they were taken, as both arms' [runs, blocks,
    2]; swapped [blocks] or [runs, blocks]."""
    outer, inner = times[..., [0, 3]], times[..., [1, 2]]
    turned = swapped[..., None]
    return np.where(turned, inner, outer), np.where(turned, outer, inner)


def compared(a: Floats, b: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """(median, low, high) of the blocks' ratios of runs' samples [runs, blocks, 2]."""
    ratios = a.sum(-1) / b.sum(-1)
    return np.median(ratios, axis=-1), *median_intervals(ratios, CONFIDENCE, seed)


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
    """Bytes a second that a copy larger than the last-level cache moves here: what two more take,
    so that what the host needs to hand over and to wait is not in it."""
    x = mx.zeros((_probe_bytes(cache_bytes) // 2 // 4,), mx.float32)
    mx.eval(x)

    def seconds(copies: int) -> float:
        """The best of three; all copies but the first are in place."""
        best = float("inf")
        for _ in range(3):
            mx.synchronize()
            start = time.perf_counter()
            y = x
            for _ in range(copies):
                y = -y
            mx.eval(y)
            best = min(best, time.perf_counter() - start)
        return best

    one, three = seconds(1), seconds(3)
    return 2 * x.nbytes / (min(one, (three - one) / 2) if three > one else one)

"""Timing: two attention calls on one clock, paired, interleaved and honest about the noise.

    Bench (buffers, chain) --arm(call)--> Arm --paired(a, b)--> Comparison (ratio, interval)

One sample is the wall time of a chain of calls, each result being the next queries, so that no
call can be dropped, merged or replayed; the chain walks through more cache buffers than the chip's
last-level cache holds. Samples come in blocks A B B A; a block's ratio cancels slow drift, and the
interval is a bootstrap over the blocks' median.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..intervals import median_interval
from ..ops.attention.reference import encode
from ..ops.attention.workload import Workload

__all__ = ["CONFIDENCE", "Arm", "Bench", "Comparison", "bandwidth", "paired"]

CONFIDENCE = 0.99
MIN_BLOCKS, _BLOCKS, MAX_BLOCKS = 10, 16, 60
CHAIN = 64
STEP = 256  # keys that mlx-lm's KVCache grows by
SAMPLE_SECONDS = 2e-3
# Results handed to the GPU while the next calls are being built, as a model's layers do.
_AHEAD = 8

Call = Callable[..., mx.array]
Mask = Callable[[int], "mx.array | None"]


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
        """Ratio, interval, and for both arms mean, std, min, max, trials and the raw samples."""
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "baseline": _summary(self.a),
            "candidate": _summary(self.b),
        }


def _summary(seconds: tuple[float, ...]) -> dict[str, Any]:
    x = np.array(seconds)
    return {
        "mean": float(x.mean()),
        "std": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
        "min": float(x.min()),
        "max": float(x.max()),
        "trials": len(x),
        "samples": [float(f"{value:.4g}") for value in x],
    }


class Arm:
    """One contender: a call on a bench, and the last thing it computed, to be checked later."""

    def __init__(self, bench: Bench, call: Call) -> None:
        self._bench, self._call = bench, call
        self._at = 0
        self.last: tuple[mx.array, int, mx.array] | None = None  # queries, buffer, result

    def seconds(self, calls: int) -> float:
        """Wall time of one call in a chain of `calls`."""
        bench, call = self._bench, self._call
        queries = bench.queries
        mx.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            at = self._at % len(bench.caches)
            self._at += 1
            asked = queries
            out = call(asked, *bench.caches[at], bench.scale, bench.mask, bench.sinks)
            queries = bench.next_queries(out)
            if i % _AHEAD == _AHEAD - 1:
                mx.async_eval(queries)  # type: ignore[no-untyped-call]
        mx.eval(queries)
        elapsed = time.perf_counter() - start
        self.last = (asked, at, out)
        return elapsed / calls


class Bench:
    """What both arms run on: queries, scale, mask, sinks, and cache slices of an exact workload.

    The slices are what mlx-lm's KVCache hands out: each of a buffer of its own, whole steps of
    keys long. MLX takes its fastest path for such slices only. Their bytes together exceed
    `cache_bytes`, as far as `memory` bytes allow. Raises MemoryError where not even two fit.
    """

    def __init__(
        self, workload: Workload, mask: mx.array | None, cache_bytes: int, memory: int, seed: int
    ) -> None:
        w = workload
        rng = np.random.default_rng([seed, 77])
        length = -(-(w.kv_len + 1) // STEP) * STEP
        stored = replace(w, kv_len=length).kv_bytes()
        room = memory // stored
        if room < 2:
            raise MemoryError(f"timing needs {2 * stored >> 20} MiB")
        count = min(room, 512, max(2, 1 + -(-cache_bytes // w.kv_bytes())))
        pool = _uploaded(rng.standard_normal(1 << 20, np.float32), w.dtype)

        def slice_of(width: int) -> Any:
            shape = (w.batch, w.kv_heads, length, width)
            size = int(np.prod(shape))
            # Each starts elsewhere in the pool, so that no two hold the same values.
            start = int(rng.integers(pool.size // 2))
            first = pool[start : start + min(size, pool.size // 2)]
            # At least two parts, so that they are copied: the start of a view may lie at an odd
            # address, where MLX is slow, or wrong.
            rest = [pool] * max(1, -(-(size - first.size) // pool.size))
            buffer = mx.concatenate([first, *rest])[:size].reshape(shape)
            if w.kv_bits:
                parts = mx.quantize(buffer, group_size=w.kv_group, bits=w.kv_bits)
                mx.eval(parts)
                return tuple(part[:, :, : w.kv_len] for part in parts)
            mx.eval(buffer)
            return buffer[:, :, : w.kv_len]

        self.workload, self.mask = w, mask
        self.caches = []
        for _ in range(count):
            keys = slice_of(w.head_dim)
            latent = w.op == "attention_latent"
            self.caches.append((keys, keys if latent else slice_of(w.v_head_dim)))
        shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
        self.queries = _uploaded(rng.standard_normal(shape, np.float32), w.dtype)
        self.sinks = (
            _uploaded(rng.standard_normal(w.q_heads, np.float32), w.dtype) if w.sinks else None
        )
        self.scale = mx.array([w.head_dim**-0.5], mx.float32)
        self._tail = self.queries[..., w.v_head_dim :]
        mx.eval(self.caches, self.queries, self.scale, self._tail)

    def arm(self, call: Call) -> Arm:
        """A contender on this bench."""
        return Arm(self, call)

    def next_queries(self, out: mx.array) -> mx.array:
        """A result [B, Hq, L, Dv] as the next call's queries [B, Hq, L, D]."""
        w = self.workload
        if w.v_head_dim == w.head_dim:
            return out
        if w.v_head_dim > w.head_dim:
            return out[..., : w.head_dim]
        return mx.concatenate([out, self._tail], axis=-1)

    @property
    def bytes(self) -> int:
        """Bytes that one call must move: keys and values once, queries, result and mask."""
        w = self.workload
        rows = w.batch * w.q_heads * w.q_len
        mask = self.mask.nbytes if self.mask is not None else 0
        return w.kv_bytes() + rows * (w.head_dim + w.v_head_dim) * w.element_bytes + mask


def _uploaded(x: Any, dtype: str) -> mx.array:
    array = mx.array(encode(x, dtype))
    return array.view(mx.bfloat16) if dtype == "bfloat16" else array


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


@functools.cache
def bandwidth(cache_bytes: int) -> float:
    """Bytes a second that a copy larger than the last-level cache moves here, the best of five."""
    x = mx.zeros((max(32 << 20, 2 * cache_bytes) // 4,), mx.float32)
    mx.eval(x)
    best = float("inf")
    for _ in range(5):
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(-x)
        best = min(best, time.perf_counter() - start)
    return 2 * x.nbytes / best

"""Race: SDPA against a contender, and when the contender counts as faster.

First at the upper end of the bucket, then at a sealed length that the contender's own label draws
and nothing else uses. Either interval must lie above FASTER, and above what SDPA reaches against
itself; a time below the roofline is a fault of the measurement; what was timed is checked again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..ops.attention.reference import Case, answer, download, mask, sdpa
from ..ops.attention.workload import Workload
from . import correctness as exam
from . import timing
from .limits import Clock, GateTimeout

__all__ = ["FASTER", "race", "recheck"]

# The lower end of the interval of SDPA's time over the contender's must lie above this.
FASTER = 1.02
# A read may be faster than the copy that bandwidth is measured by; a time beyond that is a fault.
_ROOFLINE = 1.5
_MAX_SECONDS = 6.0
# SDPA against itself must straddle 1, give or take so much: a quarter of what FASTER asks for.
_EVEN = 0.005


def race(
    build: exam.Build,
    bucket: Workload,
    device: Device,
    clock: Clock,
    seed: int,
    label: str,
    memory: int,
    limit: float,
) -> tuple[bool, str, dict[str, Any]]:
    """(faster, reason, evidence): at the bucket's upper end, then at a sealed length that the
    contender's label draws and nothing else uses."""
    budget = min(clock.left * 0.9, _MAX_SECONDS)
    top = bucket.largest()
    times: dict[str, Any] = {}
    seal = hashlib.sha256(f"{seed} {label} {bucket.slug}".encode()).digest()
    low = max(bucket.kv_len // 2 + 1, top.q_len)
    sealed = replace(
        top, kv_len=low + int.from_bytes(seal[:8], "big") % max(1, bucket.kv_len - low)
    )
    for workload, name, share in ((top, "", 0.6), (sealed, "sealed", 0.4)):
        faster, reason, found = _heat(
            build, workload, device, clock, seed, memory, limit, budget * share, bool(name)
        )
        times = {**times, name: found} if name else found
        if not faster:
            return False, f"sealed kv_len={workload.kv_len}: {reason}" if name else reason, times
    return True, "correct and faster", times


def _heat(
    build: exam.Build,
    w: Workload,
    device: Device,
    clock: Clock,
    seed: int,
    memory: int,
    limit: float,
    budget: float,
    calibrated: bool,
) -> tuple[bool, str, dict[str, Any]]:
    """SDPA against the contender at one exact workload."""
    clock.check("speed")
    try:
        bench = timing.Bench(w, mask(w, seed), device.cache, memory, seed)
    except MemoryError as error:
        raise GateTimeout(f"{w.slug}: {error}, {memory >> 20} MiB are free") from None
    scale = float(np.array(bench.scale)[0])
    baseline, twin = (bench.arm(sdpa(w, scale)) for _ in range(2))
    contender = bench.arm(build(w))
    call_seconds = timing.warm_up((baseline, contender), 0.15 * budget)
    found: dict[str, Any] = {"kv_len": w.kv_len, "buffers": len(bench.caches), "bytes": bench.bytes}

    bar = FASTER
    if not calibrated:
        same = _calibrate(baseline, twin, call_seconds, 0.25 * budget, seed, clock)
        found["same"] = {"ratio": same.ratio, "low": same.low, "high": same.high}
        bar = max(bar, same.high)
    race = timing.paired(baseline, contender, call_seconds, 0.5 * budget, seed)
    if race is None:
        raise GateTimeout(f"{w.slug}: {clock.seconds:.3g} s hold too few samples")
    found = {**race.to_json(), **found}

    reason = recheck(contender, bench, scale, limit)
    if reason:
        return False, reason, found
    found["bandwidth"] = timing.bandwidth(device.cache)
    floor = bench.bytes / (_ROOFLINE * found["bandwidth"])
    fastest = float(np.median(race.b))
    text = f"{race.ratio:.3f} [{race.low:.3f}, {race.high:.3f}]"
    if fastest < floor:
        return False, f"measurement fault: {fastest:.3g} s is below the floor {floor:.3g} s", found
    if race.low <= bar:
        return False, f"not faster: {text}, the lower end must be above {bar:.3f}", found
    return True, f"faster: {text}", found


def _calibrate(
    a: timing.Arm, b: timing.Arm, call_seconds: float, budget: float, seed: int, clock: Clock
) -> timing.Comparison:
    """SDPA against itself: where that does not come out even, no comparison means anything."""
    found: list[timing.Comparison] = []
    while len(found) < 2:
        same = timing.paired(a, b, call_seconds, budget, seed)
        if same is None:
            raise GateTimeout(f"{clock.seconds:.3g} s hold too few samples")
        if same.low <= 1 + _EVEN and same.high >= 1 - _EVEN:
            return same
        found.append(same)
    raise GateTimeout(
        "the clock is unsteady: SDPA against itself came out at "
        + ", then at ".join(f"{f.ratio:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in found)
    )


def recheck(arm: timing.Arm, bench: timing.Bench, scale: float, limit: float) -> str:
    """What is wrong with the last result that was timed, "" where nothing is. Where it differs
    from SDPA's, float64 decides who is wrong; `limit` is the largest error allowed."""
    assert arm.last is not None
    w = bench.workload
    queries, at, out = arm.last
    asked = (queries, *bench.caches[at], scale, bench.mask, bench.sinks)
    got, want = exam.numpy(out), exam.numpy(answer(w, *asked))
    off = exam.relative(got, want, exam.unit_of(w, *asked))
    if not (off > 2 * limit).any():
        return ""
    if w.kv_bits:  # there `answer` is float32 arithmetic already
        return f"a timed result differs from the reference by {off.max():.3g}"
    case = _case(bench, queries, at, scale)
    worst = max(case.row_error(b, h, row, got[b, h, row]) for b, h, row in exam.suspects(off, 0.0))
    return f"a timed result errs by {worst:.3g}, allowed {limit:.3g}" if worst > limit else ""


def _case(bench: timing.Bench, queries: mx.array, at: int, scale: float) -> Case:
    """What was asked of a float cache, as NumPy arrays."""
    keys, values = bench.caches[at]
    mask = None if bench.mask is None else download(bench.mask)
    sinks = None if bench.sinks is None else download(bench.sinks)
    arrays = (download(queries), download(keys), download(values))
    return Case("timed", bench.workload, scale, *arrays, mask, sinks, seed=0)

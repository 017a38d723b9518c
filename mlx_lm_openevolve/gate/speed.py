"""Speed: the original against a contender, and when the contender counts as faster.

First at the upper end of the bucket, then at a sealed workload that the contender's own label draws
and nothing else uses. Either interval must lie above FASTER, and above what the original reaches
against itself; a time below the roofline is a fault of the measurement; results that were timed,
drawn by lot, are checked again.

What was accepted at different times met different clocks: where another kernel serves already, the
two are timed in turns, and the contender's standing, which orders verdicts, is what that proves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..device import Device
from ..errors import GateMemory, GateTimeout, OpenEvolveError
from ..kernels.verdict import FASTER, Verdict
from ..ops import Bucket, Workload
from ..ops.base import TimingInputs
from . import timing
from .correctness import Build
from .limits import Clock

__all__ = ["FASTER", "HOPELESS", "Rival", "Speed", "compare", "first_look"]

# A read may be faster than the copy that bandwidth is measured by; a time beyond that is a fault.
_ROOFLINE = 1.5
_MAX_SECONDS = 6.0
# What is below it with its whole interval at a first look is not looked at again.
HOPELESS, _LOOK_SECONDS = 0.95, 0.1
# How the seconds are shared: between the two workloads; and of each between warming up, the
# original against itself (at the upper end alone, once more where uneven) and the contender.
TOP, SEALED = 0.6, 0.4
WARM, SAME, PAIR = 0.15, 0.25, 0.5
# Of so many seconds more, as a share of those of both workloads, the rival gets its part.
_BESIDE = 0.4
# What is left of the rival's standing where nothing was timed: more than nothing, of which no share
# could ever be more.
_UNTIMED = 0.01


class Rival(NamedTuple):
    """What serves a bucket already: how it is built, and its verdict."""

    build: Build
    verdict: Verdict


@dataclass(frozen=True)
class Speed:
    """What a comparison came to: `timing` in numbers, and the raw samples of both arms by name of
    the workload ("top", "sealed"), and "beside" a rival. correct: False where a result that was
    timed is wrong."""

    faster: bool
    reason: str
    timing: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    correct: bool = True


def compare(
    build: Build,
    bucket: Bucket,
    device: Device,
    clock: Clock,
    seed: int,
    label: str,
    memory: int,
    rival: Rival | None = None,
) -> Speed:
    """At the bucket's upper end, then at the sealed workload; what is faster there is timed beside
    the rival, if any. Raises GateTimeout."""
    budget = min(clock.left * 0.9 / (1 + _BESIDE * (rival is not None)), _MAX_SECONDS)
    seal = hashlib.sha256(f"{seed} {label} {bucket.slug}".encode()).digest()
    sealed = ops.of(bucket).questions.sealed(bucket, int.from_bytes(seal[:8], "big"))

    def at(workload: Workload, share: float, calibrated: bool) -> Speed:
        seconds = budget * share
        return _compare_at(
            build, workload, device, clock, seed, memory, seconds, calibrated=calibrated
        )

    top = at(bucket.largest(), TOP, False)
    if not top.faster:
        return replace(top, samples={"top": top.samples})
    last = at(sealed, SEALED, True)
    reason = "correct and faster" if last.faster else f"sealed {sealed.slug}: {last.reason}"
    timing_ = {**top.timing, "sealed": last.timing}
    samples = {"top": top.samples, "sealed": last.samples}
    found = Speed(last.faster, reason, timing_, samples, last.correct)
    if rival is None or not found.faster:
        return found
    return _beside(found, rival, build, bucket, device, clock, seed, memory, _BESIDE * budget)


def _beside(
    found: Speed,
    rival: Rival,
    build: Build,
    bucket: Bucket,
    device: Device,
    clock: Clock,
    seed: int,
    memory: int,
    seconds: float,
) -> Speed:
    """What was found faster than the original, in turns with the rival at the bucket's upper end.
    Where the rival fails there, or time does, nothing is proven against it."""
    w, known = bucket.largest(), rival.verdict
    pair, wrong, why = None, "", "too little time"
    try:
        inputs, _ = _inputs(w, device, clock, seed, memory)
        arm = timing.Arm(inputs, build(w), keep=timing.RECHECKED)
        arms = timing.Arm(inputs, rival.build(w)), arm
        _compile(arms, clock)
    except (OpenEvolveError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
    else:
        seconds = min(seconds, clock.left)
        call_seconds = timing.warm_up(arms, WARM * seconds)
        pair = timing.paired(*arms, call_seconds, (1 - WARM) * seconds, seed)
        wrong = arm.recheck()
    record: dict[str, Any] = {"kernel": known.kernel, "params": dict(known.params), "on": w.slug}
    record["standing"] = known.standing * (pair.low if pair else _UNTIMED)
    samples = dict(found.samples)
    if pair is not None:
        record |= pair.to_json()
        samples["beside"] = pair.samples()
    proven = "also than" if pair and pair.low > 1 else "not proven faster than"
    said = f"in turns {pair}" if pair else f"not timed in turns, {why}"
    reason = wrong or f"{found.reason}, {proven} what served (kernel {known.kernel}): {said}"
    return Speed(not wrong, reason, {**found.timing, "beside": record}, samples, not wrong)


def first_look(
    build: Build, bucket: Bucket, device: Device, clock: Clock, seed: int, memory: int
) -> Speed | None:
    """A rejection of what is clearly slower at the bucket's upper end, for a small part of what
    all questions cost; None where it may be faster. Raises GateTimeout."""
    contest = _contest(build, bucket.largest(), device, clock, seed, memory)
    call_seconds = max(arm.seconds(2) for arm in (contest.baseline, contest.contender))
    budget = min(max(_LOOK_SECONDS, timing.least(call_seconds)), clock.left)
    pair = timing.paired(contest.baseline, contest.contender, call_seconds, budget, seed)
    if pair is None or pair.high >= HOPELESS:
        return None
    evidence = {**pair.to_json(), "on": bucket.largest().slug}
    reason = f"not faster: {pair} at a first look; whether it is right was not asked"
    return Speed(False, reason, evidence, {"look": pair.samples()})


class _Contest(NamedTuple):
    """The original, it once more, and the contender, on the same inputs, compiled."""

    inputs: TimingInputs
    baseline: timing.Arm
    twin: timing.Arm
    contender: timing.Arm
    cache: int  # bytes that the inputs exceed


def _contest(
    build: Build, w: Workload, device: Device, clock: Clock, seed: int, memory: int
) -> _Contest:
    inputs, cache = _inputs(w, device, clock, seed, memory)
    baseline, twin = (timing.Arm(inputs, inputs.baseline()) for _ in range(2))
    contender = timing.Arm(inputs, build(w), keep=timing.RECHECKED)
    _compile((baseline, contender), clock)
    return _Contest(inputs, baseline, twin, contender, cache)


def _inputs(
    w: Workload, device: Device, clock: Clock, seed: int, memory: int
) -> tuple[TimingInputs, int]:
    """What calls are timed on, and the bytes of cache that it exceeds."""
    clock.check("speed")
    cache, room = timing.room(device.cache, memory)
    try:
        inputs = ops.of(w).questions.timing_inputs(w, device.cache, room, seed)
    except MemoryError as error:
        raise GateMemory(f"{w.slug}: {error}, {memory >> 20} MiB are free") from None
    return inputs, cache


def _compile(arms: tuple[timing.Arm, timing.Arm], clock: Clock) -> None:
    with clock.paused():
        for arm in arms:
            arm.seconds(1)


def _compare_at(
    build: Build,
    w: Workload,
    device: Device,
    clock: Clock,
    seed: int,
    memory: int,
    budget: float,
    *,
    calibrated: bool,
) -> Speed:
    """The original against the contender at one exact workload."""
    inputs, baseline, twin, contender, cache = _contest(build, w, device, clock, seed, memory)
    call_seconds = timing.warm_up((baseline, contender), WARM * budget)
    evidence: dict[str, Any] = {
        "on": w.slug,
        "buffers": len(inputs.rest),
        "bytes": inputs.bytes,
    }

    bar = FASTER
    if not calibrated:
        same = _calibrate(baseline, twin, call_seconds, SAME * budget, seed, clock)
        evidence["same"] = {"ratio": same.ratio, "low": same.low, "high": same.high}
        bar = max(bar, same.high)
    pair = timing.paired(baseline, contender, call_seconds, PAIR * budget, seed)
    if pair is None:
        raise GateTimeout(f"{w.slug}: {clock.seconds:.3g} s hold too few samples")
    evidence = {**pair.to_json(), **evidence}
    samples = pair.samples()

    reason = contender.recheck()
    if reason:
        return Speed(False, reason, evidence, samples, correct=False)
    evidence["bandwidth"] = timing.bandwidth(cache)
    floor = inputs.bytes / (_ROOFLINE * evidence["bandwidth"])
    fastest = float(np.median(pair.b))
    if fastest < floor:
        reason = f"measurement fault: {fastest:.3g} s is below the floor {floor:.3g} s"
        return Speed(False, reason, evidence, samples)
    if pair.low <= bar:
        reason = f"not faster: {pair}, the lower end must be above {bar:.3f}"
        return Speed(False, reason, evidence, samples)
    return Speed(True, f"faster: {pair}", evidence, samples)


def even(low: Any, high: Any) -> Any:
    """Whether an interval of the original against itself (or, of arrays, which) straddles 1."""
    return (low <= 1) & (high >= 1)


def _calibrate(
    a: timing.Arm, b: timing.Arm, call_seconds: float, budget: float, seed: int, clock: Clock
) -> timing.Comparison:
    """The original against itself: where that does not come out even, no comparison means
    anything."""
    uneven: list[timing.Comparison] = []
    while len(uneven) < 2:
        same = timing.paired(a, b, call_seconds, budget, seed)
        if same is None:
            raise GateTimeout(f"{clock.seconds:.3g} s hold too few samples")
        if even(same.low, same.high):
            return same
        uneven.append(same)
    raise GateTimeout(
        "the clock is unsteady: the original against itself came out at "
        + ", then at ".join(map(str, uneven))
    )

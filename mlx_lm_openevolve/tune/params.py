"""Params that nobody tried yet: a few of them against each other on the clock, the fastest before
the gate."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping

from .. import backends, ops
from ..backends.metal import those_that_fit
from ..backends.trouble import machines
from ..errors import GateTimeout, MachineError, OpenEvolveError
from ..gate import timing
from ..gate.limits import memory_for
from ..gate.static_rules import static_rules
from ..kernels.kernel import Kernel
from ..ops import Bucket
from ..runtime.planner import Contender, Planner
from .decide import LEAST, SERVED, Row

__all__ = ["better", "fastest", "settings"]

_GAIN = 1.03  # what a setting must win on the clock before the gate looks at it
_ROUNDS = 3


def settings(
    kernel: Kernel, bucket: Bucket, first: Mapping[str, int], seed: int
) -> Iterator[dict[str, int]]:
    """Settings of a kernel for a bucket that may be launched: those one param away from `first`,
    in drawn order, then any, drawn."""
    rng = random.Random(f"{seed} {kernel.id} {bucket.slug}")
    near = [
        {**first, param.name: value}
        for param in kernel.params
        for value in param.values
        if value != first[param.name]
    ]
    rng.shuffle(near)
    far = [{p.name: rng.choice(p.values) for p in kernel.params} for _ in range(4 * len(near))]
    seen = [dict(first)]
    for params in (*near, *far):
        if params not in seen and not static_rules(kernel, params, bucket):
            seen.append(params)
            yield params


def better(planner: Planner, row: Row, end: float) -> Row | None:
    """What the gate says of the fastest setting that the clock finds until `end`
    (time.monotonic), where it serves and is faster than what is known; else None."""
    known = row.verdict
    kernel = planner.kernel(known.kernel) if known else None
    if known is None or kernel is None:
        return None
    own = Contender(kernel, dict(known.params), trusted=True)  # it was judged right just now
    try:
        with machines():
            found = fastest(planner, own, row.bucket, end - LEAST)
        if found is None:
            return None
        verdict = planner.judge(found, row.bucket, max(LEAST, end - time.monotonic()))
    except (GateTimeout, MachineError):
        return None
    if not planner.serves(verdict) or verdict.rank <= known.rank:
        return None
    return Row(row.use, SERVED, verdict.reason, verdict, new=True)


def fastest(planner: Planner, known: Contender, bucket: Bucket, end: float) -> Contender | None:
    """The fastest setting of `known`'s kernel that the clock found until `end` (time.monotonic);
    None where none is faster than its own by _GAIN. It is not judged yet. Raises MemoryError."""
    device, exact = planner.device, bucket.largest()
    questions = ops.of(bucket).questions
    inputs = questions.timing_inputs(exact, device.cache, memory_for(device), 0)
    build = backends.get(device.backend).build

    def arm(params: Mapping[str, int]) -> timing.Arm | None:
        try:
            made = timing.Arm(inputs, build(known.kernel, params, exact))
            made.seconds(2)  # compiles
        except (OpenEvolveError, ValueError, RuntimeError):  # it asks more than this chip has
            return None
        return made

    own = arm(known.params)
    if own is None:
        return None
    best, bar = None, _GAIN
    judged = [v.params for v in planner.verdicts(bucket) if v.kernel == known.kernel.id]
    for params in _launchable(planner, known, bucket):
        if time.monotonic() > end:
            break
        other = None if params in judged else arm(params)
        if other is None:
            continue
        calls = timing.calls_for(own.seconds(2))
        # Neighbours in time: what drifts, drifts for both.
        ratios = sorted(own.seconds(calls) / other.seconds(calls) for _ in range(_ROUNDS))
        if ratios[_ROUNDS // 2] > bar:
            best, bar = params, ratios[_ROUNDS // 2]
    return None if best is None else Contender(known.kernel, best, known.trusted)


def _launchable(planner: Planner, known: Contender, bucket: Bucket) -> Iterator[dict[str, int]]:
    """`settings`, on Metal without those that have too much threadgroup memory."""
    offered = settings(known.kernel, bucket, known.params, 0)
    if planner.device.backend != "metal":
        return offered
    return those_that_fit(known.kernel, bucket, offered, lambda params: params)

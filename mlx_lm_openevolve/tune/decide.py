"""Deciding: the known kernels on every workload that is not decided yet, the most valuable first.

    uses -> stored? -> worth (calls a token x what the original loses there) -> gate -> registry

Every verdict is stored as soon as it is made: whoever stops keeps what there is, and the next run
goes on where this one ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .. import ops
from ..backends.trouble import machines
from ..device import Device
from ..errors import GateTimeout, MachineError
from ..gate import timing
from ..gate.limits import memory_for
from ..kernels.verdict import Verdict
from ..ops import Bucket
from ..runtime.planner import Planner, begun
from .workloads import Use

__all__ = ["LEAST", "LEFT", "REJECTED", "SERVED", "UNSERVED", "Row", "decide", "stored", "worth"]

SERVED, REJECTED = "served", "rejected"
UNSERVED = "without a kernel"  # none applies
LEFT = "left"  # no time, no memory or trouble of the machine: the next run tries it
# Seconds for one verdict: the more, the narrower its interval. On the host a kernel runs a thousand
# times slower.
LEAST, _MOST, _MOST_ON_HOST = 3.0, 6.0, 120.0


@dataclass(frozen=True)
class Row:
    """What is known of one bucket: `state` is one of those above; `verdict` is the best there is;
    `new` says whether this run made it."""

    use: Use
    state: str
    reason: str
    verdict: Verdict | None = None
    new: bool = False

    @property
    def bucket(self) -> Bucket:
        """The bucket."""
        return self.use.bucket


def stored(planner: Planner, use: Use) -> Row | None:
    """What is decided already; None where a kernel is to be judged."""
    plan = planner.stored(use.bucket)
    if plan is not None:
        return Row(use, SERVED, plan.reason, plan.verdict)
    if planner.candidates(use.bucket):
        return None
    verdicts = planner.verdicts(use.bucket)
    if verdicts:
        return Row(use, REJECTED, verdicts[0].reason, verdicts[0])
    return Row(use, UNSERVED, "no kernel applies")


def worth(use: Use, device: Device, seed: int = 0) -> float:
    """Seconds a token that the original takes beyond what its bytes take, as measured now: what a
    kernel could save at most. Raises MachineError, also where the device cannot hold the inputs."""
    workload = use.bucket.largest()
    questions = ops.of(workload).questions
    cache, room = timing.room(device.cache, memory_for(device))
    with machines():
        inputs = questions.timing_inputs(workload, device.cache, room, seed)
        arm = timing.Arm(inputs, inputs.baseline())
        arm.seconds(2)  # compiles
        seconds = min(arm.seconds(timing.calls_for(arm.seconds(2))) for _ in range(2))
        return use.calls * max(0.0, seconds - inputs.bytes / timing.bandwidth(cache))


def decide(planner: Planner, uses: Sequence[Use], end: float) -> Iterator[Row]:
    """Judge the candidates of every use, in this order, until one is accepted, and until `end`
    (time.monotonic): the first get the time that a good verdict takes, the last what is left.
    Yields a row for each."""
    most = _MOST_ON_HOST if planner.device.backend == "host" else _MOST
    for use in uses:
        seconds = min(max(end - time.monotonic(), LEAST), most)
        yield _decide(planner, use, seconds, end)


def _decide(planner: Planner, use: Use, seconds: float, end: float) -> Row:
    made: list[Verdict] = []
    for candidate in planner.candidates(use.bucket):
        if end - time.monotonic() < LEAST:
            return Row(use, LEFT, "the budget was spent", _best(made), bool(made))
        try:
            made.append(planner.judge(candidate, use.bucket, seconds))
            if begun(made[-1]):
                raise GateTimeout(f"{seconds:.0f} s held no time for its speed")
        except (GateTimeout, MachineError) as error:
            return Row(use, LEFT, str(error), _best(made), bool(made))
        if planner.serves(made[-1]):
            return Row(use, SERVED, made[-1].reason, made[-1], True)
    best = _best([*made, *planner.verdicts(use.bucket)])
    return Row(use, REJECTED, best.reason if best else "no kernel applies", best, bool(made))


def _best(verdicts: Sequence[Verdict]) -> Verdict | None:
    return max(verdicts, key=lambda v: v.rank, default=None)

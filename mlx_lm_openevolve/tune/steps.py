"""Whole decode steps: a model with merged products against its own, for each number of sequences.

model, batches -> stored? -> decode/judge.py -> your registry
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..backends.trouble import machines
from ..decode.judge import judge
from ..decode.steps import stored
from ..decode.structure import slug, structure
from ..errors import GateTimeout, MachineError
from ..kernels.verdict import Verdict
from ..ops.base import next_pow2
from ..runtime.planner import Planner

__all__ = ["StepRow", "decide_steps"]

LEAST, _MOST = 5.0, 12.0  # seconds of steps that are timed for one verdict


class StepRow(NamedTuple):
    """What is known of decoding so many sequences with one structure; without a verdict, why."""

    slug: str
    reason: str
    verdict: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
        """As `tune` reports it."""
        verdict = self.verdict.to_json() if self.verdict else None
        return {"workload": self.slug, "reason": self.reason, "verdict": verdict}


def decide_steps(
    model: Any, batches: Sequence[int], planner: Planner, end: float
) -> Iterator[StepRow]:
    """A row for each number of sequences, rounded up to a power of two, until `end`
    (time.monotonic). Every verdict is stored as soon as it is made. Raises RegistryError."""
    known = stored(planner.device, planner.registries)
    for batch in sorted({next_pow2(n) for n in batches}):
        name = slug(structure(model), batch)
        old = known.get(name)
        if old is not None and not old.ask_again:
            yield StepRow(name, old.reason, old)
            continue
        left = end - time.monotonic()
        if left < LEAST:
            yield StepRow(name, "the budget was spent", old)
            continue
        try:
            with machines():
                verdict = judge(model, batch, planner.device, min(left, _MOST))
        except (GateTimeout, MachineError) as error:
            yield StepRow(name, str(error), old)
            continue
        if verdict is None:
            yield StepRow(name, "no layer whose products could be one is recognised")
            continue
        verdict = replace(verdict, asked=1 + (old.asked if old else 0))
        planner.user.publish(planner.device.slug, verdict)
        yield StepRow(name, verdict.reason, verdict)

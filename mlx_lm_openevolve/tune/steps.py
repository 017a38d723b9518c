"""Whole decode steps: a model with compiled layers against its own, for each number of sequences.

model, batches -> stored? -> decode/judge.py -> your registry
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..backends.trouble import machines
from ..decode.judge import judge
from ..decode.steps import WAYS, stored
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
    """Rows for each number of sequences, rounded up to a power of two: one for each of WAYS until
    one serves, or `end` (time.monotonic). Every verdict is stored as soon as it is made. Raises
    RegistryError."""
    found = stored(planner.device, planner.registries)
    known = {(verdict.workload, verdict.kernel): verdict for verdict in reversed(found)}
    for batch in sorted({next_pow2(n) for n in batches}):
        name = slug(structure(model), batch)
        for what in WAYS:
            row = _decide(model, batch, what, planner, end, known.get((name, what)))
            yield StepRow(name, f"{what}: {row[0]}", row[1])
            if row[1] is None or planner.serves(row[1]):
                break


def _decide(
    model: Any, batch: int, what: str, planner: Planner, end: float, old: Verdict | None
) -> tuple[str, Verdict | None]:
    """(reason, verdict) on one of WAYS."""
    if old is not None and not old.ask_again:
        return old.reason, old
    left = end - time.monotonic()
    if left < LEAST:
        return "the budget was spent", old
    try:
        with machines():
            verdict = judge(model, batch, planner.device, min(left, _MOST), what)
    except (GateTimeout, MachineError) as error:
        return str(error), old
    if verdict is None:
        return "no layer can be compiled", None
    verdict = replace(verdict, asked=1 + (old.asked if old else 0))
    planner.user.publish(planner.device.slug, verdict)
    return verdict.reason, verdict

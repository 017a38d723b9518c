"""Whole decode steps: a model with compiled layers against its own, for each number of sequences.

model, batches -> stored? -> decode/judge.py -> your registry
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

from mlx.utils import tree_flatten

from ..backends.trouble import machines
from ..decode.judge import judge
from ..decode.structure import slug, structure
from ..errors import GateTimeout, MachineError
from ..gate.limits import free_memory
from ..kernels.verdict import STEP, WAYS, Verdict
from ..runtime.planner import Planner

__all__ = ["StepRow", "decide_steps"]

LEAST, _MOST = 5.0, 12.0  # seconds of steps that are timed for one verdict
# Memory that the comparison takes, over that of the weights: caches, a layer's weights in float32.
_ROOM = 1.25


class StepRow(NamedTuple):
    """What is known of decoding so many sequences with one structure; without a verdict, why;
    left: whether the next run tries it."""

    slug: str
    reason: str
    verdict: Verdict | None = None
    left: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `tune` reports it."""
        verdict = self.verdict.to_json() if self.verdict else None
        return {"workload": self.slug, "reason": self.reason, "verdict": verdict}


def decide_steps(model: Any, batch: int, planner: Planner, end: float) -> list[StepRow]:
    """What is known of decoding `batch` sequences, a power of two: a row for each of WAYS until one
    serves, or `end` (time.monotonic). Every verdict is stored as soon as it is made. Raises
    RegistryError."""
    rows: list[StepRow] = []
    known = {(v.workload, v.kernel): v for v in reversed([*planner.counting(STEP)])}
    name = slug(structure(model), batch)
    for what in WAYS:
        old = known.get((name, what))
        reason, verdict, left = _decide(model, batch, what, planner, end, old)
        rows.append(StepRow(name, f"{what}: {reason}", verdict, left))
        if verdict is None or planner.serves(verdict):
            break
    return rows


def _decide(
    model: Any, batch: int, what: str, planner: Planner, end: float, old: Verdict | None
) -> tuple[str, Verdict | None, bool]:
    """(reason, verdict, whether it is left for the next run) on one of WAYS."""
    if old is not None and not old.ask_again:
        return old.reason, old, False
    left = end - time.monotonic()
    if left < LEAST:
        return "the budget was spent", old, True
    leaves: Any = tree_flatten(model.parameters())
    weights = sum(array.nbytes for _, array in leaves)
    if planner.device.memory and _ROOM * weights > free_memory(planner.device):
        return f"its weights, {weights / 1e9:.1f} GB, leave too little memory", old, True
    try:
        with machines():
            verdict = judge(model, batch, planner.device, min(left, _MOST), what)
    except (GateTimeout, MachineError) as error:
        return str(error), old, True
    if verdict is None:
        return "no layer can be compiled", None, False
    verdict = replace(verdict, asked=1 + (old.asked if old else 0))
    planner.user.publish(planner.device.slug, verdict)
    return verdict.reason, verdict, False

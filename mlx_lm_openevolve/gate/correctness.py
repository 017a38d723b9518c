"""Correctness: one call put to a contender, by the same code for kernels, mutants and MLX's own.

    Question (inputs, reference, the original's answer and error) --Calls--> Outcome

An answer passes where it has the right shape, is the same bits twice although another call came
between (whose answer is right as well), leaves its inputs alone, and stays within what the family's
question allows.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from .. import ops
from ..backends.trouble import machines
from ..errors import interrupted
from ..ops import Workload
from ..ops.base import Call, Question

__all__ = ["FREED", "Build", "Calls", "MutantTrial", "Outcome", "passes", "try_mutants"]

Build = Callable[[Workload], Call]
Buffers = Sequence[tuple[tuple[int, ...], mx.Dtype]]

# Freed buffers of this many results hold NaN when a kernel is launched: MLX hands them out again.
FREED = 3


@dataclass(frozen=True)
class Outcome:
    """What became of an answer: `reason` is "" where it passed. max and average are errors in the
    family's unit; margin is what is left of the tolerance, from 1 down to 0."""

    reason: str = ""
    max: float = 0.0
    average: float = 0.0
    margin: float = 1.0


def fill_freed(buffers: Buffers, value: float) -> None:
    """Leave freed buffers full of `value` in MLX's allocator, for the next outputs of that size:
    what a kernel does not write then shows."""
    if not buffers:
        return
    arrays = [mx.full(shape, value, dtype) for shape, dtype in buffers for _ in range(FREED)]
    mx.eval(arrays)
    mx.synchronize()


def _same_bits(a: mx.array, b: mx.array) -> bool:
    kind = mx.uint32 if a.dtype == mx.float32 else mx.uint16
    return bool(mx.array_equal(a.view(kind), b.view(kind)).item())


def _examine(
    call: Call, question: Question, buffers: Buffers, first: AbstractContextManager[None]
) -> Outcome:
    """Judge a Call's answer. `buffers` are the shapes and dtypes of intermediate outputs, which are
    filled beforehand as well; it is called within `first` first."""
    shape, dtype = question.shape, question.dtype
    buffers = [(shape, dtype), *buffers]

    def reject(reason: str, **errors: float) -> Outcome:
        return Outcome(f"{question.name}: {reason}", **{"margin": 0.0, **errors})

    fill_freed(buffers, float("nan"))
    with first:
        out = call(*question.arguments)
        single = out.astype(mx.float32)
        mx.eval(out, single)
    if out.shape != shape or out.dtype != dtype:
        return reject(f"the output is {out.dtype} {out.shape}, expected {dtype} {shape}")
    got = np.array(single)
    worst, average = question.error(got)
    margin = 1 - max(worst / question.limits[0], average / question.limits[1])
    if not margin > 0:
        return reject(
            f"error max {worst:.3g} average {average:.3g}, "
            f"allowed {question.limits[0]:.3g} and {question.limits[1]:.3g}",
            max=worst,
            average=average,
        )
    reason = question.fault(got)
    if question.other is not None and not reason:
        # Another call in between: its result is what a replay or an unwritten part would show.
        reason = question.other_fault(np.array(call(*question.other).astype(mx.float32)))
        fill_freed(buffers[1:], 1e4)
        if not reason and not _same_bits(out, call(*question.arguments)):
            reason = "two runs of the same call differ"
    if not reason and question.changed():
        reason = "the inputs were changed"
    if reason:
        return reject(reason, max=worst, average=average)
    return Outcome("", worst, average, margin)


class Calls:
    """The Calls of one contender, built once for each exact workload and kept: one that replays
    an earlier result is then caught at it. Each is built, and runs for the first time, within
    `first()`."""

    def __init__(
        self, build: Build, first: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._build, self._first = build, first
        self._calls: dict[Workload, Call] = {}

    def __call__(self, question: Question, buffers: Buffers = ()) -> Outcome:
        """Put one question; what building or calling raises is the outcome, but for OSError.
        Raises MachineError where the machine is to blame."""
        w = question.workload
        try:
            with machines():
                if w in self._calls:
                    return _examine(self._calls[w], question, buffers, nullcontext())
                with self._first():
                    self._calls[w] = self._build(w)
                return _examine(self._calls[w], question, buffers, self._first())
        except OSError:  # a full disk or a full GPU is no kernel's fault
            raise
        except Exception as error:
            if interrupted(error):  # nor is Ctrl-C
                raise KeyboardInterrupt from None
            line = (str(error).strip() or "no message").splitlines()[0]
            return Outcome(f"{question.name}: {type(error).__name__}: {line[:300]}", margin=0)


def passes(build: Build, questions: Iterable[Question]) -> Outcome:
    """The first outcome that is no pass, else the last one."""
    calls, outcome = Calls(build), Outcome()
    for question in questions:
        outcome = calls(question)
        if outcome.reason:
            break
    return outcome


def drawn_seed(turn: int = 0) -> int:
    """The seed of a verdict for which none was given: drawn in each process, so that no kernel can
    be made for the questions; the same in all of it, so that mutants are tried once."""
    return _drawn() + turn


@functools.cache
def _drawn() -> int:
    return secrets.randbelow(1 << 31)


@dataclass(frozen=True)
class MutantTrial:
    """What became of the mutants: how many were tried on which workload, and which survived.
    broken: not even a correct implementation passed, or there is no mutant."""

    killed: int
    of: int
    survivors: tuple[str, ...]
    on: str
    broken: bool = False

    @property
    def reason(self) -> str:
        """ "" where every mutant was rejected; which were not is in the evidence."""
        if not self.survivors:
            return ""
        if self.broken:
            return f"the gate cannot be trusted on {self.on}: it passed {', '.join(self.survivors)}"
        return (
            f"nothing can be proven here: {len(self.survivors)} of {self.of} known-wrong kernels"
            " give the right result as well"
        )

    def also(self, more: MutantTrial) -> MutantTrial:
        """This trial with further questions about the same workload."""
        if more.broken:
            return more
        survivors = tuple(name for name in self.survivors if name in more.survivors)
        return replace(self, killed=self.of - len(survivors), survivors=survivors)


def try_mutants(
    workload: Workload, questions: Sequence[Question], tick: Callable[[], None] = lambda: None
) -> MutantTrial:
    """Put the questions to every mutant that can show on a workload. The unchanged implementation
    goes first: where even that fails, a rejection would prove nothing. `tick` may raise."""
    asked = ops.of(workload).questions
    mutants = asked.mutants(workload)
    survivors = []
    if not mutants:
        survivors.append("everything: not one mutant applies")
    if passes(asked.correct.build, questions).reason:
        survivors.append(f"nothing, not even a {asked.correct.name} implementation")
    broken = bool(survivors)
    for mutant in mutants:
        tick()
        if not passes(mutant.build, questions).reason:
            survivors.append(mutant.name)
    killed = len(mutants) - len(survivors)
    return MutantTrial(killed, len(mutants), tuple(survivors), workload.slug, broken)

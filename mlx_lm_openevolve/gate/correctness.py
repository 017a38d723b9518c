"""Exam: one attention call put to the test, by the same code for kernels, mutants and MLX's own.

    Case --prepare--> Question (inputs, truth, SDPA's answer and own error) --Calls--> Outcome

An answer passes where it has the right shape, is the same bits twice although another call came
between, leaves its inputs alone, stays within a small multiple of SDPA's own error on the same
inputs, and agrees with SDPA in the rows that no float64 truth was computed for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import interrupted
from ..ops.attention.mutants import Mutant, applicable, correct
from ..ops.attention.reference import Case, Inputs, Truth, answer, floats, mass, smallest
from ..ops.attention.workload import Workload

__all__ = [
    "MULTIPLE",
    "Build",
    "Calls",
    "Outcome",
    "Question",
    "Result",
    "prepare",
    "try_mutants",
]

Build = Callable[[Workload], Callable[..., mx.array]]
Buffers = Sequence[tuple[tuple[int, ...], mx.Dtype]]

# A kernel may err this many times as much as SDPA, or as the rounding of the dtype, if larger.
MULTIPLE = 4.0
# Rows that differ from SDPA's which are computed in float64: the worst, and of the rest.
_SUSPECTS = 16
# SDPA that errs more is not imprecise but wrong, and excuses nobody. MLX 0.32.4 on CUDA was seen to
# err by 0.9 under a bool mask on keys that start off a multiple of 16 bytes, 0.06 elsewhere.
_BELIEVED = 0.25
# Freed buffers of this many results hold NaN when a kernel is launched: MLX hands them out again.
_POISONED = 3


@dataclass(frozen=True)
class Outcome:
    """What an answer was found to be: `reason` is "" where it passed. max and average are errors
    in units of the sum of p |v|; margin is what is left of the tolerance, from 1 down to 0."""

    reason: str = ""
    max: float = 0.0
    average: float = 0.0
    margin: float = 1.0


@dataclass(frozen=True, eq=False)
class Question:
    """A case with all that is needed to judge an answer."""

    case: Case
    inputs: Inputs
    truth: Truth
    answer: npt.NDArray[np.float32]  # SDPA's, [B, Hq, L, Dv]
    mass: npt.NDArray[np.float32]  # sum of p |v| for every element, by SDPA
    own: tuple[float, float]  # SDPA's error (max, average)
    limits: tuple[float, float]  # what an answer may err
    checksum: tuple[int, ...]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a Call takes."""
        x = self.inputs
        return x.queries, x.keys, x.values, x.scale, x.mask, x.sinks


def numpy(array: mx.array) -> npt.NDArray[np.float32]:
    """An array's values as float32."""
    return np.array(array.astype(mx.float32))


def unit_of(workload: Workload, *asked: Any) -> npt.NDArray[np.float32]:
    """What errors of an answer are measured in, [B, Hq, L, Dv]."""
    return np.maximum(numpy(mass(workload, *asked)), np.float32(smallest(workload.dtype)))


def _floors(dtype: mx.Dtype, logit: float, head_dim: int) -> tuple[float, float]:
    """Errors (max, average) that rounding explains: of the dtype, and of logits of that
    magnitude in float32, whose rounding grows with the square root of the terms in a sum."""
    eps, single = float(mx.finfo(dtype).eps), float(np.finfo(np.float32).eps)
    softmax = single * max(8.0, logit) * max(1.0, head_dim / 64) ** 0.5
    return eps + 4 * softmax, eps / 2 + 2 * softmax


def _checksum(inputs: Inputs) -> tuple[int, ...]:
    """Sums of the buffers' bits, what lies around the views included."""
    sums = []
    for buffer in inputs.buffers:
        bits = buffer.view(mx.uint32 if buffer.dtype.size == 4 else mx.uint16)
        sums.append(mx.sum(bits.astype(mx.uint32)))
    mx.eval(sums)
    return tuple(int(np.array(total)) for total in sums)


def prepare(case: Case) -> Question:
    """Upload a case and have both the float64 reference and SDPA answer it."""
    inputs = case.upload()
    w = case.workload
    asked = (inputs.queries, inputs.keys, inputs.values, case.scale, inputs.mask, inputs.sinks)
    given, unit = numpy(answer(w, *asked)), unit_of(w, *asked)
    truth = case.truth()
    own = truth.error(given)
    if not own[0] < _BELIEVED:  # then SDPA is no measure: only rounding is excused
        own = (0.0, 0.0)
    floors = _floors(inputs.queries.dtype, truth.logit, w.head_dim)
    limits = (MULTIPLE * max(own[0], floors[0]), MULTIPLE * max(own[1], floors[1]))
    return Question(case, inputs, truth, given, unit, own, limits, _checksum(inputs))


def poison(buffers: Buffers, value: float) -> None:
    """Leave freed buffers full of `value` in MLX's allocator, for the next outputs of that size:
    what a kernel does not write then shows."""
    arrays = [mx.full(shape, value, dtype) for shape, dtype in buffers for _ in range(_POISONED)]
    mx.eval(arrays)
    mx.synchronize()


def _same_bits(a: mx.array, b: mx.array) -> bool:
    kind = mx.uint32 if a.dtype == mx.float32 else mx.uint16
    return bool(mx.array_equal(a.view(kind), b.view(kind)).item())


def _examine(call: Callable[..., mx.array], question: Question, buffers: Buffers) -> Outcome:
    """Judge a Call's answer. `buffers` are the shapes and dtypes of intermediate outputs, to be
    poisoned as well."""
    case, w = question.case, question.case.workload
    queries, *rest = question.arguments
    shape = (w.batch, w.q_heads, w.q_len, w.v_head_dim)
    buffers = [(shape, queries.dtype), *buffers]

    def reject(reason: str, **found: float) -> Outcome:
        return Outcome(f"{case.name}: {reason}", **{"margin": 0.0, **found})

    poison(buffers, float("nan"))
    out = call(queries, *rest)
    mx.eval(out)
    if out.shape != shape or out.dtype != queries.dtype:
        return reject(f"the output is {out.dtype} {out.shape}, expected {queries.dtype} {shape}")
    # Another call in between: its result is what a replay or an unwritten part would show.
    other = call(-queries, *rest)
    mx.eval(other)
    del other
    poison(buffers[1:], 1e4)
    again = call(queries, *rest)
    mx.eval(again)

    got = numpy(out)
    worst, average = question.truth.error(got)
    margin = 1 - max(worst / question.limits[0], average / question.limits[1])
    if not margin > 0:
        return reject(
            f"error max {worst:.3g} average {average:.3g}, "
            f"allowed {question.limits[0]:.3g} and {question.limits[1]:.3g}",
            max=worst,
            average=average,
        )
    reason = disagreement(got, question) or _dead_rows(got, question)
    if not reason and not _same_bits(out, again):
        reason = "two runs of the same call differ"
    if not reason and _checksum(question.inputs) != question.checksum:
        reason = "the inputs were changed"
    if reason:
        return reject(reason, max=worst, average=average)
    return Outcome("", worst, average, margin)


def disagreement(got: npt.NDArray[np.float32], question: Question) -> str:
    """A live row that differs from SDPA's by more than both may err and is wrong by float64,
    "" where there is none. SDPA itself errs most somewhere: where the two differ, neither is
    taken at its word, and the rows that differ most, and a sample of the rest, are computed."""
    allowed = question.limits[0] + 2 * question.limits[0] / MULTIPLE
    live = ~question.case.dead_rows() & np.isfinite(question.answer).all(-1)
    off = np.where(live, relative(got, question.answer, question.mass), 0.0)
    for b, h, row in suspects(off, allowed):
        error = question.case.row_error(b, h, row, got[b, h, row])
        if error > question.limits[0]:
            return (
                f"{int((off > allowed).sum())} rows differ from SDPA's, among them"
                f" batch {b}, head {h}, row {row}:"
                f" error {error:.3g}, allowed {question.limits[0]:.3g}"
            )
    return ""


def suspects(off: npt.NDArray[np.float32], allowed: float) -> list[tuple[int, int, int]]:
    """Rows (batch, head, row) of `off` [B, Hq, L] above `allowed`: the worst first, then a sample
    of the rest."""
    found = np.argwhere(off > allowed)
    found = found[np.argsort(-off[tuple(found.T)], kind="stable")]
    rest = found[_SUSPECTS:]
    chosen = [*found[:_SUSPECTS], *rest[:: max(1, -(-len(rest) // _SUSPECTS))]]
    return [(int(b), int(h), int(row)) for b, h, row in chosen]


def relative(
    got: npt.NDArray[np.float32], want: npt.NDArray[np.float32], mass: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The largest |got - want| / mass of every row [B, Hq, L]; inf where it is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(got - want) / mass
    worst: npt.NDArray[np.float32] = np.where(np.isfinite(off), off, np.inf).max(-1)
    return worst


def _dead_rows(got: npt.NDArray[np.float32], question: Question) -> str:
    """What is wrong with the rows that have every key masked, "" where nothing is.

    Under a bool mask such a row is one of what MLX's own paths give: zeros (vector kernels), the
    mean of V (composition), or what SDPA gives here. An additive mask of finite numbers hides by
    rounding alone, so there any average of V will do; NaN only where SDPA gives NaN.
    """
    dead = question.case.dead_rows()
    if not dead.any():
        return ""
    w = question.case.workload
    rows, want = got[dead], question.answer[dead]
    values = numpy(floats(w, question.inputs.values))
    if w.mask == "additive":
        top = np.abs(values).max(2).repeat(w.group, 1)[:, :, None]
        top = np.broadcast_to(top, got.shape)[dead]
        # A quantised value that is 0 comes of a scale and a bias that are not.
        top = top + question.limits[0] * np.fmax(top, question.mass[dead])
        known = (np.abs(rows) <= top) | ~np.isfinite(want)
        return "" if known.all() else "a row with every key masked is no average of V"
    means = values.mean(2).repeat(w.group, 1)[:, :, None]
    unit = np.abs(values).mean(2).repeat(w.group, 1)[:, :, None]
    means, unit = (np.broadcast_to(x, got.shape)[dead] for x in (means, unit))
    allowed = 2 * question.limits[0] * np.maximum(unit, 1e-30)
    with np.errstate(invalid="ignore"):
        known = np.any(
            [(np.abs(rows - x) <= allowed).all(-1) for x in (np.zeros_like(rows), want, means)],
            axis=0,
        )
    if known.all():
        return ""
    return "a row with every key masked is neither zero, nor the mean of V, nor SDPA's"


@dataclass(frozen=True)
class Result:
    """What became of the mutants: how many were put up, which survived, and what killed each."""

    killed: int
    of: int
    survivors: tuple[str, ...]
    on: str

    @property
    def reason(self) -> str:
        """ "" where every mutant was rejected."""
        if not self.survivors:
            return ""
        return f"the gate cannot be trusted on {self.on}: it passed {', '.join(self.survivors)}"


class Calls:
    """The Calls of one contender, built once for each exact workload and kept: one that replays
    an earlier result is then caught at it."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._calls: dict[Workload, Callable[..., mx.array]] = {}

    def __call__(self, question: Question, buffers: Buffers = ()) -> Outcome:
        """Put one question; what building or calling raises is the outcome, but for OSError."""
        w = question.case.workload
        try:
            if w not in self._calls:
                self._calls[w] = self._build(w)
            return _examine(self._calls[w], question, buffers)
        except OSError:  # a full disk is no kernel's fault
            raise
        except Exception as error:
            if interrupted(error):  # nor is Ctrl-C
                raise KeyboardInterrupt from None
            line = (str(error).strip() or "no message").splitlines()[0]
            return Outcome(f"{question.case.name}: {type(error).__name__}: {line[:300]}", margin=0)


def passes(build: Build, questions: Iterable[Question]) -> Outcome:
    """The first outcome that is no pass, else the last one."""
    calls, outcome = Calls(build), Outcome()
    for question in questions:
        outcome = calls(question)
        if outcome.reason:
            break
    return outcome


def try_mutants(
    workload: Workload, questions: Sequence[Question], tick: Callable[[], None] = lambda: None
) -> Result:
    """Put the questions to every mutant that can show on a workload. The unchanged implementation
    goes first: where even that fails, a rejection would prove nothing. `tick` may raise."""
    kept: list[Mutant] = applicable(workload)
    survivors = []
    if passes(correct.build, questions).reason:
        survivors.append(f"nothing, not even a {correct.name} implementation")
    for mutant in kept:
        tick()
        if not passes(mutant.build, questions).reason:
            survivors.append(mutant.name)
    return Result(len(kept) - len(survivors), len(kept), tuple(survivors), workload.slug)

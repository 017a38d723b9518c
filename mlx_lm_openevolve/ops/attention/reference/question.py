"""A case of attention with its float64 reference, SDPA's answer, and what an answer may err."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...base import Question
from ...encoding import smallest
from ..workload import Workload
from .baseline import answer, floats, mass, sizes
from .float64 import Case, Inputs

__all__ = [
    *("BELIEVED", "MULTIPLE", "AttentionQuestion", "CountQuestion", "Counted"),
    *("as_float32", "floors", "relative", "suspects", "unit_of"),
]

Float32 = npt.NDArray[np.float32]

# A kernel may err this many times as much as SDPA, or as the rounding of the dtype, if larger.
MULTIPLE = 4.0
# The root mean square, of many elements, says more: it may be this many times as large.
AVERAGE = 2.0
# Rows that differ from SDPA's which are computed in float64: the worst, and of the rest.
_SUSPECTS = 16
# SDPA that errs more is not imprecise but wrong, and excuses nobody. MLX 0.32.4 on CUDA was seen to
# err by 0.9 under a bool mask on keys that start off a multiple of 16 bytes, 0.06 elsewhere.
BELIEVED = 0.25
# Of a row with every key masked, by whether there are sinks.
_NO_ANSWER = {
    False: "a row with every key masked is neither zero, nor the mean of V, nor SDPA's",
    True: "a row with every key masked is neither zero, as its sink leaves it, nor SDPA's",
}
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}  # by bytes of an element


def as_float32(array: mx.array) -> Float32:
    """An array's values as float32."""
    return np.array(array.astype(mx.float32))


def unit_of(workload: Workload, *asked: Any) -> Float32:
    """What errors of an answer are measured in, [B, Hq, L, Dv]: the sum of p |v|."""
    return np.maximum(as_float32(mass(workload, *asked)), np.float32(smallest(workload.dtype)))


def floors(dtype: mx.Dtype, logit: float, head_dim: int) -> tuple[float, float]:
    """Errors (max, root mean square) that rounding explains: of the dtype, and of logits of that
    magnitude in float32, whose rounding grows with the square root of the terms in a sum."""
    eps, single = float(mx.finfo(dtype).eps), float(np.finfo(np.float32).eps)
    softmax = single * max(8.0, logit) * max(1.0, head_dim / 64) ** 0.5
    return eps + 4 * softmax, eps / 4 + 2 * softmax


class _CaseQuestion(Question):
    """A case on the device."""

    workload: Workload

    def __init__(self, case: Case) -> None:
        w = case.workload
        self.case, self.workload, self.name = case, w, case.name
        self.inputs = x = case.upload()
        self.arguments = (x.queries, x.keys, x.values, x.scale, x.mask, x.sinks)
        self.shape = (w.batch, w.q_heads, w.q_len, w.v_head_dim)
        self.dtype = x.queries.dtype
        self._checksum = _checksum(x)

    def changed(self) -> bool:
        """Whether the caches' buffers are other than they were, around the views as well."""
        return _checksum(self.inputs) != self._checksum


class AttentionQuestion(_CaseQuestion):
    """A case against float64 and SDPA. `answer` is SDPA's, [B, Hq, L, Dv]."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        w, x = self.workload, self.inputs
        self.other = (-x.queries, *self.arguments[1:])
        self.counted: Counted | None = None
        if case.beside is not None:
            counted = case.beside()
            self.counted = Counted(counted, counted.call(mx.zeros_like(x.queries), x.keys))
            self.other = self.counted.arguments
        asked = (x.queries, x.keys, x.values, case.scale, x.mask, x.sinks)
        self.answer = as_float32(answer(w, *asked))
        self.reference = case.reference()
        own = self.reference.error(self.answer)
        if not own[0] < BELIEVED:  # then SDPA is no measure: only rounding is excused
            own = (0.0, 0.0)
        least = floors(self.dtype, self.reference.logit, w.head_dim)
        self.own = own
        self.limits = (MULTIPLE * max(own[0], least[0]), AVERAGE * max(own[1], least[1]))

    def error(self, got: Float32) -> tuple[float, float]:
        """In units of the sum of p |v|."""
        return self.reference.error(got)

    def other_fault(self, got: Float32) -> str:
        return "" if self.counted is None else self.counted.fault(got)

    def least_bytes(self) -> int:
        """Of keys and values those that some row sees; a mask as it is passed."""
        w, mask = self.workload, self.inputs.mask
        stored = w.stored_bytes()
        other = w.rows * (w.head_dim + w.v_head_dim) * w.element_bytes
        return round(stored * self.case.seen_share()) + other + (0 if mask is None else mask.nbytes)

    def fault(self, got: Float32) -> str:
        """A row that no float64 result was computed for at first, or one with every key masked."""
        w, known = self.workload, self.reference
        every = len(known.pairs) == w.batch * w.kv_heads and len(known.rows) == w.q_len
        return ("" if every else self.disagreement(got)) or self._dead_rows(got)

    @cached_property
    def mass(self) -> Float32:
        """The unit of errors by SDPA, [B, Hq, L, Dv]."""
        x = self.inputs
        return unit_of(self.workload, x.queries, x.keys, x.values, self.case.scale, x.mask, x.sinks)

    def disagreement(self, got: Float32) -> str:
        """A live row that differs from SDPA's by more than both may err and is wrong by float64,
        "" where there is none. SDPA itself errs most somewhere: where the two differ, neither is
        taken at its word, and the rows that differ most, and a sample of the rest, are computed."""
        allowed = self.limits[0] + 2 * self.limits[0] / MULTIPLE
        live = ~self.case.dead_rows() & np.isfinite(self.answer).all(-1)
        off = np.where(live, relative(got, self.answer, self.mass), 0.0)
        for b, h, row in suspects(off, allowed):
            error = self.case.row_error(b, h, row, got[b, h, row])
            if error > self.limits[0]:
                return (
                    f"{int((off > allowed).sum())} rows differ from SDPA's, among them"
                    f" batch {b}, head {h}, row {row}:"
                    f" error {error:.3g}, allowed {self.limits[0]:.3g}"
                )
        return ""

    def _dead_rows(self, got: Float32) -> str:
        """What is wrong with the rows that have every key masked, "" where nothing is.

        Under a bool mask such a row is one of what MLX's own paths give: zeros (vector kernels),
        the mean of V (composition), or what SDPA gives here. An additive mask of finite numbers
        hides by rounding alone, so there any average of V will do; NaN only where SDPA gives NaN.
        A sink takes all of the weight: on each of MLX's paths zeros are left, or what SDPA gives.
        """
        dead = self.case.dead_rows()
        if not dead.any():
            return ""
        w = self.workload
        rows, want = got[dead], self.answer[dead]
        values = as_float32(floats(w, self.inputs.values))
        if w.mask == "additive" and not w.sinks:
            top = np.abs(values).max(2).repeat(w.group, 1)[:, :, None]
            top = np.broadcast_to(top, got.shape)[dead]
            # In what `sizes` counts, as below.
            top = top + self.limits[0] * np.fmax(top, self.mass[dead])
            known = (np.abs(rows) <= top) | ~np.isfinite(want)
            return "" if known.all() else "a row with every key masked is no average of V"
        means = values.mean(2).repeat(w.group, 1)[:, :, None]
        unit = as_float32(sizes(w, self.inputs.values)).mean(2).repeat(w.group, 1)[:, :, None]
        means, unit = (np.broadcast_to(x, got.shape)[dead] for x in (means, unit))
        allowed = 2 * self.limits[0] * np.maximum(unit, 1e-30)
        with np.errstate(invalid="ignore"):
            owed = (np.zeros_like(rows), want) if w.sinks else (np.zeros_like(rows), want, means)
            known = np.any([(np.abs(rows - x) <= allowed).all(-1) for x in owed], axis=0)
            if w.mask == "additive":
                known |= ~np.isfinite(want).all(-1)
        if known.all():
            return ""
        return _NO_ANSWER[w.sinks]


class Counted:
    """A call whose keys are counted: what it is handed, and whether an answer is right, which the
    values alone say, without attention.

    Every row is the mean of the values that it sees, +1 and -1, whose sum is nearly zero in most
    columns: nothing is left to round, and a single key that is lost, or read twice, moves these by
    one over their number; one that only the sum of weights knows moves the columns of +1. Errors
    are in units of one key of a row over the number of all keys; in a row that sees all that is
    the sum of p |v|, as elsewhere."""

    def __init__(self, case: Case, arguments: tuple[Any, ...]) -> None:
        self.case, self.arguments = case, arguments
        # A key is one, so half of one is as far from right as from wrong; the average of many
        # errors is all the more certain. Rounding comes to less: the most seen is 0.12 and 0.03,
        # of 16 shares of 32768 keys that are kept in bfloat16, and of MLX's own 0.02.
        self.limits = (0.5 / case.workload.kv_len, 0.25 / case.workload.kv_len)
        self.reference = case.counted()

    def fault(self, got: Float32) -> str:
        """What is wrong with an answer, "" where nothing is."""
        worst, average = self.reference.error(got)
        if not (worst < self.limits[0] and average < self.limits[1]):
            return (
                f"keys are not all counted once: error max {worst:.3g} average {average:.3g}, "
                f"allowed {self.limits[0]:.3g} and {self.limits[1]:.3g}"
            )
        return self.dead_rows(got)

    def dead_rows(self, got: Float32) -> str:
        """What is wrong with the rows that have every key masked: see AttentionQuestion; here the
        mean is that of the keys with the largest mask value, whatever the mask."""
        w, known = self.case.workload, self.reference
        answers: Float32 | None = None
        for (b, h), mean, unit, live in zip(
            known.pairs, known.out, known.mass, known.live, strict=True
        ):
            if live.all():
                continue
            heads = slice(h * w.group, (h + 1) * w.group)
            rows, allowed = got[b, heads][:, known.rows][~live], self.limits[0] * unit[~live]
            fine = (np.abs(rows) <= allowed).all(-1)
            if not w.sinks:
                mean = np.broadcast_to(mean, unit.shape)[~live]
                fine |= (np.abs(rows - mean) <= allowed).all(-1)
            if fine.all():
                continue
            if answers is None:
                queries, keys, values, _, mask, sinks = self.arguments
                answers = as_float32(answer(w, queries, keys, values, self.case.scale, mask, sinks))
            want = answers[b, heads][:, known.rows][~live]
            with np.errstate(invalid="ignore"):
                fine |= (np.abs(rows - want) <= allowed).all(-1)
            if w.mask == "additive":
                fine |= ~np.isfinite(want).all(-1)
            if not fine.all():
                return _NO_ANSWER[w.sinks]
        return ""


class CountQuestion(_CaseQuestion):
    """A case of "count"; it is asked once, as what it is for shows in any answer."""

    own = (0.0, 0.0)
    other = None

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.counted = Counted(case, self.arguments)
        self.limits = self.counted.limits

    def error(self, got: Float32) -> tuple[float, float]:
        return self.counted.reference.error(got)

    def fault(self, got: Float32) -> str:
        return self.counted.dead_rows(got)


def _checksum(inputs: Inputs) -> tuple[int, ...]:
    """Sums of the buffers' bits, what lies around the views included."""
    sums = []
    for buffer in inputs.buffers:
        bits = buffer.view(_BITS[buffer.dtype.size])
        sums.append(mx.sum(bits.astype(mx.uint32)))
    mx.eval(sums)
    return tuple(int(np.array(total)) for total in sums)


def suspects(off: Float32, allowed: float) -> list[tuple[int, int, int]]:
    """Rows (batch, head, row) of `off` [B, Hq, L] above `allowed`: the worst first, then a sample
    of the rest."""
    rows = np.argwhere(off > allowed)
    rows = rows[np.argsort(-off[tuple(rows.T)], kind="stable")]
    rest = rows[_SUSPECTS:]
    chosen = [*rows[:_SUSPECTS], *rest[:: max(1, -(-len(rest) // _SUSPECTS))]]
    return [(int(b), int(h), int(row)) for b, h, row in chosen]


def relative(got: Float32, want: Float32, mass: Float32) -> Float32:
    """The largest |got - want| / mass of every row [B, Hq, L]; inf where it is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(got - want) / mass
    worst: Float32 = np.where(np.isfinite(off), off, np.inf).max(-1)
    return worst

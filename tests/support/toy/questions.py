from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..base import Call, Question, Questions, TimingInputs
from . import target
from .workload import Bucket, Workload


@dataclass(frozen=True)
class ToyMutant:
    name: str
    run: Callable[..., mx.array]

    def build(self, workload: Any) -> Call:
        return self.run


MUTANTS = (
    ToyMutant("shift-lost", lambda x, scale, shift: x * scale),
    ToyMutant("scale-lost", lambda x, scale, shift: x + shift),
    ToyMutant("scale-of-next-column", lambda x, scale, shift: x * mx.roll(scale, 1) + shift),
    ToyMutant("first-row-for-all", lambda x, scale, shift: 0 * x + x[:1] * scale + shift),
    ToyMutant("zeros", lambda x, scale, shift: mx.zeros_like(x)),
)


class ToyQuestion(Question):
    def __init__(self, workload: Workload, seed: int) -> None:
        w = workload
        rng = np.random.default_rng(seed)
        dtype = getattr(mx, w.dtype)
        x, scale, shift = (
            mx.array(rng.standard_normal(shape, np.float32)).astype(dtype)
            for shape in ((w.rows, w.width), (w.width,), (w.width,))
        )
        mx.eval(x, scale, shift)
        self.workload, self.name = w, f"random rows={w.rows}"
        self.arguments, self.other = (x, scale, shift), (-x, scale, shift)
        self.shape, self.dtype = x.shape, dtype
        exact = [np.array(a.astype(mx.float32)).astype(np.float64) for a in self.arguments]
        self.want = exact[0] * exact[1] + exact[2]
        self.size = np.abs(exact[0] * exact[1]) + np.abs(exact[2])
        self.own = self.error(np.array(target.affine(x, scale, shift).astype(mx.float32)))
        eps = float(mx.finfo(dtype).eps)
        self.limits = (4 * max(self.own[0], eps), 4 * max(self.own[1], eps))
        self._before = [np.array(a.astype(mx.float32)) for a in self.arguments]

    def error(self, got: Any) -> tuple[float, float]:
        off = np.abs(got - self.want) / self.size
        off = np.where(np.isfinite(off), off, np.inf)
        return float(off.max()), float(off.mean())

    def changed(self) -> bool:
        now = [np.array(a.astype(mx.float32)) for a in self.arguments]
        return not all(map(np.array_equal, now, self._before))


class ToyTimingInputs(TimingInputs):
    def __init__(self, workload: Workload, seed: int) -> None:
        question = ToyQuestion(workload, seed)
        self.workload, self.first = workload, question.arguments[0]
        self.rest, self.bytes = [question.arguments[1:]], workload.moved_bytes()

    def next(self, out: mx.array) -> mx.array:
        return mx.clip(out, -4, 4)

    def baseline(self) -> Call:
        return target.affine  # looked up now: it is the replaced function itself

    def recheck(self, at: int, first: mx.array, out: mx.array) -> str:
        want = target.affine(first, *self.rest[at])
        limit = 4 * float(mx.finfo(out.dtype).eps)
        right = mx.allclose(out, want, rtol=limit, atol=limit).item()
        return "" if right else "a timed result is wrong"


class _ToyQuestions(Questions[Bucket, Workload]):
    unit = "|x scale| + |shift|"
    correct = ToyMutant("correct", lambda *given: target.affine(*given))
    usual = (Bucket(8, 64, "float32"), Bucket(8, 64, "bfloat16"))

    def cases(
        self, bucket: Bucket, seed: int, brief: bool = False
    ) -> Iterator[Callable[[], Question]]:
        low = bucket.rows // 2 + 1
        for turn, rows in enumerate((bucket.rows, low)):
            w = Workload(rows, bucket.width, bucket.dtype)
            yield lambda w=w, turn=turn: ToyQuestion(w, seed + turn)

    def quick(self, small: Bucket, bucket: Bucket, seed: int) -> Sequence[Question]:
        return [ToyQuestion(small.largest(), seed + turn) for turn in range(2)]

    def proxy(self, bucket: Bucket) -> Bucket:
        return replace(bucket, rows=min(bucket.rows, 8))

    def larger(self, small: Bucket, bucket: Bucket) -> Bucket | None:
        return None if small.rows >= bucket.rows else replace(small, rows=2 * small.rows)

    def mutants(self, workload: Workload) -> Sequence[ToyMutant]:
        return [m for m in MUTANTS if m.name != "first-row-for-all" or workload.rows > 1]

    def baseline_name(self, workload: Workload) -> str:
        return "x * scale + shift"

    def timing_inputs(
        self, workload: Workload, cache_bytes: int, memory: int, seed: int
    ) -> ToyTimingInputs:
        return ToyTimingInputs(workload, seed)

    def sealed(self, bucket: Bucket, draw: int) -> Workload:
        low = bucket.rows // 2 + 1
        rows = low + draw % max(1, bucket.rows - low)
        return Workload(rows, bucket.width, bucket.dtype)


QUESTIONS = _ToyQuestions()

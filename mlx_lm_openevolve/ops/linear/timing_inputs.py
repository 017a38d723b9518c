"""What both arms of a comparison run on: x, and more matrices than the last-level cache holds.

A result cannot be the next x: it has another width, and would fade or grow from call to call. So
the first output's scales are zero in every matrix, and the next x is the first one plus what came
out there: each call waits for the one before, and every x is of real size. That takes one launch,
the same in both arms, which makes a difference between them smaller, never larger.

Rows that go to experts go to others at each call: experts are dealt like cards, so that none comes
again before all others were read.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..base import Call, TimingInputs
from ..encoding import decode, download, encode, upload
from .call import SORTED, stock
from .reference import MULTIPLE, PackedWeights, drawn_weights, exact, floors, rows_of
from .routings import deal
from .workload import Workload

__all__ = ["ProductTimingInputs"]

_OUTPUTS = 64  # of a timed result, that are computed in float64
_IN_FLIGHT = 5  # calls of a chain whose results MLX holds at once


class ProductTimingInputs(TimingInputs):
    """x, and packed matrices of an exact workload that together exceed `cache_bytes`, as far as
    `memory` bytes allow. Raises MemoryError where not even two fit."""

    workload: Workload

    def __init__(self, workload: Workload, cache_bytes: int, memory: int, seed: int) -> None:
        w = workload
        rng = np.random.default_rng([seed, 77])
        results = w.rows * (w.n + 2 * w.k) * w.element_bytes
        room = (memory - _IN_FLIGHT * results) // w.all_bytes
        if room < 2:
            needed = memory + (2 - room) * w.all_bytes
            raise MemoryError(f"timing needs {needed >> 20} MiB")
        count = min(room, 512, max(2, 1 + -(-cache_bytes // w.all_bytes)))
        self.workload = w
        shape = (w.batch, 1, 1, w.k) if w.experts else (w.batch, w.length, w.k)
        self.first = upload(encode(rng.standard_normal(shape, np.float32), w.dtype), w.dtype)
        one = drawn_weights(rng, w).upload(w)
        # The same matrix with its outputs in another order each time: no two arrays are alike.
        sets = []
        for _ in range(count):
            by = int(rng.integers(w.n))
            words, *shared = (None if part is None else mx.roll(part, by, -2) for part in one)
            parts = [words, *(None if part is None else _without_first(part) for part in shared)]
            mx.eval(*[part for part in parts if part is not None])
            sets.append(tuple(parts))
        self.rest = sets
        if w.experts:
            dealt = [(at, mx.array(some)) for at, some in deal(rng, w, count, w.rows >= SORTED)]
            self.rest = [(some, *sets[at]) for at, some in dealt]
            mx.eval(*[some for _, some in dealt])
        mx.eval(self.first)
        self.bytes = w.moved_bytes()

    def baseline(self) -> Call:
        """MLX's product."""
        return lambda *given: stock(self.workload, *given)

    def next(self, out: mx.array) -> mx.array:
        """The first x: a result's first column is nothing."""
        return self.first + (out[:, :1, :, :1] if self.workload.experts else out[..., :1])

    def recheck(self, at: int, first: mx.array, out: mx.array) -> str:
        """Outputs that differ most from MLX's, and others, in float64."""
        w, given = self.workload, self.rest[at]
        by_mlx = stock(w, first, *given).reshape(w.shape)
        if out.shape != w.shape or out.dtype != first.dtype:
            return f"a timed result is {out.dtype} {out.shape}, expected {first.dtype} {w.shape}"
        got, near = (np.array(x.astype(mx.float32)).reshape(w.rows, w.n) for x in (out, by_mlx))
        off = np.abs(got - near)
        worst = np.argsort(-np.where(np.isfinite(off), off, np.inf).max(0))[: _OUTPUTS // 2]
        outputs = np.unique([*worst, *np.linspace(0, w.n - 1, _OUTPUTS // 2).astype(int)])
        if w.n > 1:
            outputs = outputs[outputs > 0]  # the first is next to nothing: 2^-127 in mxfp4
        indices = np.array(given[0]) if w.experts else None
        stored = (download(part) for part in given[1 if w.experts else 0 :] if part is not None)
        words, scales, *biases = (part.reshape(w.outputs, -1) for part in stored)
        weights = PackedWeights(words, scales, biases[0] if biases else None)
        x = rows_of(w, decode(download(first), w.dtype))
        want, mass = exact(w, weights, x, indices, outputs)
        limit = MULTIPLE * floors(w, np.abs(want) / mass)[0]
        with np.errstate(invalid="ignore"):
            off = np.abs(got[:, outputs] - want) / mass
        ours = float(np.where(np.isfinite(off), off, np.inf).max())
        return f"a timed result errs by {ours:.3g}, allowed {limit:.3g}" if ours > limit else ""


def _without_first(shared: mx.array) -> mx.array:
    """Scales or biases [.., N, K / group] with zeros for the first output of each matrix."""
    return mx.concatenate([mx.zeros_like(shared[..., :1, :]), shared[..., 1:, :]], -2)

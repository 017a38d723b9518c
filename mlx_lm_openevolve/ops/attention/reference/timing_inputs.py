"""What both arms of a comparison of attention run on: queries, and slices of more caches than the
chip's last-level cache holds.

A result becomes the next queries. If values were drawn as keys are, results would fade to zero in a
few calls, and with them every logit: what is timed would be the mean of V, and a contender that
answers zeros would pass. So the values of a head are noise around a direction of its own: whatever
the weights, a result has the magnitude of queries. And the scale gives logits a deviation of about
3: a few keys carry most of a row, the rest too much to be left out, as in the gate's peaked cases.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...base import Call, TimingInputs
from ...encoding import Array, download, encode, smallest, upload
from ..workload import Workload
from .baseline import answer, mass, sdpa
from .float64 import Case
from .layouts import DENSE, Packed, cut
from .question import BELIEVED, MULTIPLE, Float32, as_float32, floors, suspects

__all__ = ["STEP", "AttentionTimingInputs"]

STEP = 256  # keys that mlx-lm's KVCache grows by
_DEVIATION = 3.0  # of the logits of queries of magnitude 1
_LOGIT = 32.0  # no logit here is larger: it sets what rounding in float32 explains
_ROWS = 4  # of a result, that are computed in float64 where it differs from SDPA's
# Calls of a chain whose memory MLX holds at once: it prepares some while it computes one. 4.6 were
# seen on the CPU, in chains of 8 and of 24.
_IN_FLIGHT = 5


class AttentionTimingInputs(TimingInputs):
    """Queries, scale, mask, sinks, and cache slices of an exact workload.

    The slices are what mlx-lm's KVCache hands out: each of a buffer of its own, whole steps of
    keys long. MLX takes its fastest path for such slices only. Their bytes together exceed
    `cache_bytes`, as far as `memory` bytes allow beside what calls take. Raises MemoryError where
    not even two fit.
    """

    workload: Workload

    def __init__(
        self, workload: Workload, mask: mx.array | None, cache_bytes: int, memory: int, seed: int
    ) -> None:
        w = workload
        rng = np.random.default_rng([seed, 77])
        length = -(-(w.kv_len + 1) // STEP) * STEP
        stored = w.exact(kv_len=length).stored_bytes()
        pool_bytes = 2 * w.element_bytes << 20
        room = (memory - pool_bytes - _IN_FLIGHT * _call_bytes(w)) // stored
        if room < 2:
            needed = memory + (2 - room) * stored
            raise MemoryError(f"timing needs {needed >> 20} MiB")
        count = min(room, 512, max(2, 1 + -(-cache_bytes // w.stored_bytes())))
        pool = _uploaded(rng.standard_normal(1 << 20, np.float32), w.dtype)

        def slice_of(width: int, around: mx.array | None = None) -> Any:
            shape = (w.batch, w.kv_heads, length, width)
            size = int(np.prod(shape))
            # Each starts elsewhere in the pool, so that no two hold the same values.
            start = int(rng.integers(pool.size // 2))
            # At least two parts, so that they are copied: the start of a view may lie at an odd
            # address, where MLX is slow, or wrong. No element more: a slice would keep it.
            first = pool[start : start + min(size // 2, pool.size // 2)]
            whole, left = divmod(size - first.size, pool.size)
            # Elsewhere too: keys and values that were alike would have large logits.
            again = int(rng.integers(pool.size - left + 1))
            last = pool[again : again + left]
            buffer = mx.concatenate([first, *[pool] * whole, last]).reshape(shape)
            if around is not None:
                buffer = buffer + around
            if w.kv_bits:
                parts = mx.quantize(buffer, group_size=w.kv_group, bits=w.kv_bits)
                mx.eval(parts)
                return tuple(part[:, :, : w.kv_len] for part in parts)
            mx.eval(buffer)
            return buffer[:, :, : w.kv_len]

        self.workload, self.mask = w, mask
        caches = []
        for _ in range(count):
            centre = rng.standard_normal((w.batch, w.kv_heads, 1, w.v_head_dim), np.float32)
            values = slice_of(w.v_head_dim, _uploaded(centre, w.dtype))
            caches.append((values if w.latent else slice_of(w.head_dim), values))
        shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
        self.first = _uploaded(rng.standard_normal(shape, np.float32), w.dtype)
        self.sinks = (
            _uploaded(rng.standard_normal(w.q_heads, np.float32), w.dtype) if w.sinks else None
        )
        self.scale = mx.array([_DEVIATION * w.head_dim**-0.5], mx.float32)
        self._number = float(np.array(self.scale)[0])
        self._tail = self.first[..., w.v_head_dim :]
        mx.eval(caches, self.first, self.scale, self._tail)
        self.rest = [(*cache, self.scale, mask, self.sinks) for cache in caches]
        results = w.rows * (w.head_dim + w.v_head_dim) * w.element_bytes
        self.bytes = w.stored_bytes() + results + (mask.nbytes if mask is not None else 0)

    def baseline(self) -> Call:
        """MLX's SDPA, or what mlx-lm runs in its place."""
        return sdpa(self.workload, self._number)

    def next(self, out: mx.array) -> mx.array:
        """A result [B, Hq, L, Dv] as the next call's queries [B, Hq, L, D]."""
        w = self.workload
        if w.v_head_dim == w.head_dim:
            return out
        if w.v_head_dim > w.head_dim:
            return out[..., : w.head_dim]
        return mx.concatenate([out, self._tail], axis=-1)

    def recheck(self, at: int, first: mx.array, out: mx.array) -> str:
        """Against SDPA, row by row. Where one differs by more than rounding explains, float64 says
        who is wrong, and a result may err MULTIPLE times as much as SDPA does there."""
        w = self.workload
        keys, values = self.rest[at][:2]
        asked = (first, keys, values, self._number, self.mask, self.sinks)
        want = answer(w, *asked)
        if out.shape != want.shape or out.dtype != first.dtype:
            return f"a timed result is {out.dtype} {out.shape}, expected {first.dtype} {want.shape}"
        floor = floors(first.dtype, _LOGIT, w.head_dim)[0]
        rows = suspects(self._off(out, want, mass(w, *asked)), MULTIPLE * floor)[:_ROWS]
        if not rows:
            return ""
        case, got, by_sdpa = self._case(first, keys, values), as_float32(out), as_float32(want)
        worst, own = (max(case.row_error(*row, x[row]) for row in rows) for x in (got, by_sdpa))
        limit = MULTIPLE * max(own if own < BELIEVED else 0.0, floor)
        return f"a timed result errs by {worst:.3g}, allowed {limit:.3g}" if worst > limit else ""

    def _off(self, got: mx.array, want: mx.array, mass: mx.array) -> Float32:
        """The largest |got - want| / mass of every row [B, Hq, L]; inf where it is no number."""
        got, want, mass = (x.astype(mx.float32) for x in (got, want, mass))
        off = mx.abs(got - want) / mx.maximum(mass, smallest(self.workload.dtype))
        return np.array(mx.where(mx.isfinite(off), off, mx.inf).max(-1))

    def _case(self, queries: mx.array, keys: Any, values: Any) -> Case:
        """What was asked, as NumPy arrays."""
        w = self.workload

        def stored(x: Any) -> Array | Packed:
            if not w.kv_bits:
                return download(x)
            words, scales, biases = (cut(part, DENSE, part.flat[:1]) for part in map(download, x))
            return Packed((words, scales, biases), w.kv_bits, w.dtype)

        mask = None if self.mask is None else download(self.mask)
        sinks = None if self.sinks is None else download(self.sinks)
        arrays = (download(queries), stored(keys), stored(values))
        return Case("timed", w, self._number, *arrays, mask, sinks, seed=0)


def _call_bytes(w: Workload) -> int:
    """Bytes that one call of the baseline takes: queries, result, scores where they are kept, and
    the copies that a quantised product makes of slices."""
    floats = w.rows * (w.head_dim + w.v_head_dim) * w.element_bytes
    return floats + w.score_bytes() + (w.stored_bytes() if w.kv_bits else 0)


def _uploaded(x: Any, dtype: str) -> mx.array:
    return upload(encode(x, dtype), dtype)

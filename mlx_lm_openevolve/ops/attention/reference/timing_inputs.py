"""What both arms of a comparison of attention run on: queries, and slices of more caches than the
chip's last-level cache holds."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...base import Call, TimingInputs
from ..workload import Workload
from .baseline import answer, sdpa
from .encoding import download, encode, upload
from .float64 import Case
from .question import as_float32, relative, suspects, unit_of

__all__ = ["STEP", "AttentionTimingInputs"]

STEP = 256  # keys that mlx-lm's KVCache grows by
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

        def slice_of(width: int) -> Any:
            shape = (w.batch, w.kv_heads, length, width)
            size = int(np.prod(shape))
            # Each starts elsewhere in the pool, so that no two hold the same values.
            start = int(rng.integers(pool.size // 2))
            # At least two parts, so that they are copied: the start of a view may lie at an odd
            # address, where MLX is slow, or wrong. No element more: a slice would keep it.
            first = pool[start : start + min(size // 2, pool.size // 2)]
            whole, left = divmod(size - first.size, pool.size)
            buffer = mx.concatenate([first, *[pool] * whole, pool[:left]]).reshape(shape)
            if w.kv_bits:
                parts = mx.quantize(buffer, group_size=w.kv_group, bits=w.kv_bits)
                mx.eval(parts)
                return tuple(part[:, :, : w.kv_len] for part in parts)
            mx.eval(buffer)
            return buffer[:, :, : w.kv_len]

        self.workload, self.mask = w, mask
        caches = []
        for _ in range(count):
            keys = slice_of(w.head_dim)
            caches.append((keys, keys if w.latent else slice_of(w.v_head_dim)))
        shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
        self.first = _uploaded(rng.standard_normal(shape, np.float32), w.dtype)
        self.sinks = (
            _uploaded(rng.standard_normal(w.q_heads, np.float32), w.dtype) if w.sinks else None
        )
        self.scale = mx.array([w.head_dim**-0.5], mx.float32)
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

    def recheck(self, at: int, first: mx.array, out: mx.array, limit: float) -> str:
        """Where a result differs from SDPA's, float64 decides who is wrong."""
        w = self.workload
        keys, values = self.rest[at][:2]
        asked = (first, keys, values, self._number, self.mask, self.sinks)
        got, want = as_float32(out), as_float32(answer(w, *asked))
        off = relative(got, want, unit_of(w, *asked))
        if not (off > 2 * limit).any():
            return ""
        if w.kv_bits:  # there `answer` is float32 arithmetic already
            return f"a timed result differs from the reference by {off.max():.3g}"
        case = self._case(first, keys, values)
        worst = max(case.row_error(b, h, row, got[b, h, row]) for b, h, row in suspects(off, 0.0))
        return f"a timed result errs by {worst:.3g}, allowed {limit:.3g}" if worst > limit else ""

    def _case(self, queries: mx.array, keys: mx.array, values: mx.array) -> Case:
        """What was asked of a float cache, as NumPy arrays."""
        mask = None if self.mask is None else download(self.mask)
        sinks = None if self.sinks is None else download(self.sinks)
        arrays = (download(queries), download(keys), download(values))
        return Case("timed", self.workload, self._number, *arrays, mask, sinks, seed=0)


def _call_bytes(w: Workload) -> int:
    """Bytes that one call of the baseline takes: queries, result, scores where they are kept, and
    the copies that a quantised product makes of slices."""
    floats = w.rows * (w.head_dim + w.v_head_dim) * w.element_bytes
    return floats + w.score_bytes() + (w.stored_bytes() if w.kv_bits else 0)


def _uploaded(x: Any, dtype: str) -> mx.array:
    return upload(encode(x, dtype), dtype)

"""Contents of a case: what each kind of queries, keys, values and sinks makes visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ...encoding import Array, Bool, decode, encode
from ..workload import Workload
from .layouts import Placed, Placing

__all__ = ["CONTENTS", "Content", "filled", "signs"]

# Random entries that are drawn for a cache; a larger one repeats them, shifted.
_POOL = 4 << 20
# Rows from which heads draw their first, where keys are counted.
_WINDOW = 64
# Heavy keys of a crowd, beside the first.
_HEAVY = 7
# No query of float16 is larger.
_MOST = 3e4
# Products of queries and keys up to which every rival of a key is looked at.
_MOST_RIVALRY = 1 << 25

# 256 quantiles of the standard normal: a random byte is an index, which is fast for large caches.
_NORMAL: Floats = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Content:
    """Arrays of one kind before they are stored: queries [B, Hq, L, D] and sinks [Hq]."""

    queries: Floats
    keys: Placed
    values: Placed
    sinks: Floats


@dataclass(frozen=True, eq=False)
class Draw:
    """What contents are drawn for."""

    rng: np.random.Generator
    workload: Workload
    scale: float
    seen: Bool | None  # see float64.visible
    keys: Placing
    values: Placing
    far: str = ""  # see plans.CasePlan

    def normal(self) -> Floats:
        """Queries of standard normals."""
        w = self.workload
        shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
        drawn: Floats = _NORMAL[self.rng.integers(0, 256, shape, np.uint8)]
        return drawn

    def cache(self) -> tuple[Placed, Placed]:
        """Keys and values of normals, of a magnitude each; in a latent cache they are one."""
        latent = self.workload.latent
        low = -5 if self.workload.dtype == "float16" else -9
        keys = self._magnitude("keys", *((-3, 4) if latent else (-5, 7)))
        values = self._magnitude("values", low, 4)
        placed = self.filled(self.keys, _NORMAL * keys)
        return placed, placed if latent else self.filled(self.values, _NORMAL * values)

    def _magnitude(self, operand: str, low: int, high: int) -> np.float32:
        """A power of two from a range, or `far` from it: beyond what half precision holds."""
        drawn = int(self.rng.integers(low, high))
        return np.float32(
            2.0 ** {f"{operand} above": 24, f"{operand} below": -30}.get(self.far, drawn)
        )

    def filled(self, layout: Placing, table: Floats) -> Placed:
        """A cache of random entries of `table`."""
        w = self.workload
        width = w.head_dim if layout is self.keys else w.v_head_dim
        return filled(self.rng, (w.batch, w.kv_heads, w.kv_len, width), layout, table, w.dtype)

    def towards(
        self, keys: Placed, at: Positions, logit: npt.ArrayLike, common: Floats | None = None
    ) -> Floats:
        """Queries whose logit on the key at a position [B, Hq, L] is `logit`, which broadcasts;
        along what that key has beside what is `common` to a KV head's [B, Hkv, 1, D]."""
        rows = self._rows(keys, at)
        if common is not None:
            rows = rows - common.repeat(self.workload.group, 1)
        size = np.maximum((rows * rows).sum(-1), 1e-30)
        queries: Floats = rows * (np.asarray(logit) / (self.scale * size))[..., None]
        return queries

    def logits(self, keys: Placed, at: Positions, queries: Floats) -> Floats:
        """The logits [B, Hq, L] of queries on the keys at those positions."""
        found: Floats = (self._rows(keys, at) * queries).sum(-1) * self.scale
        return found

    def _rows(self, keys: Placed, at: Positions) -> Floats:
        """The keys [B, Hq, L, D] at positions [B, Hq, L]."""
        w = self.workload
        b, h = np.ogrid[: w.batch, : w.q_heads]
        return decode(keys.view[b[..., None], (h // w.group)[..., None], at], w.dtype)

    @cached_property
    def rows(self) -> Bool:
        """Which keys each row may see, [B, Hq, L, N]; there is a mask."""
        w = self.workload
        assert self.seen is not None
        return np.broadcast_to(self.seen, (w.batch, w.q_heads, w.q_len, w.kv_len))

    def ends(self, b: int, h: int, i: int) -> Positions:
        """Where what a row may see ends: the keys on one side, then those on the other. The first
        and the last key of all where nothing ends."""
        last = self.workload.kv_len - 1
        if self.seen is None:
            return np.array([0, last])
        sizes = (1, 1, 1, *self.seen.shape)[-4:-1]  # rows that see the same are looked at once
        place = tuple(k if size > 1 else 0 for k, size in zip((b, h, i), sizes, strict=True))
        if place not in self._ends:
            row = self.rows[place]
            steps = np.flatnonzero(row[1:] != row[:-1])
            found = np.concatenate([steps, steps + 1]) if steps.size else np.array([0, last])
            self._ends[place] = found
        return self._ends[place]

    @cached_property
    def _ends(self) -> dict[tuple[int, ...], Positions]:
        return {}

    def stored(self, queries: Floats, keys: Placed, values: Placed, sinks: Floats) -> Content:
        """As a dtype can hold it."""
        top = float(np.abs(queries).max())
        if self.workload.dtype == "float16" and top > _MOST:
            queries = queries * (_MOST / top)
        return Content(queries, keys, values, sinks)


def filled(
    rng: np.random.Generator, shape: tuple[int, ...], layout: Placing, table: Floats, dtype: str
) -> Placed:
    """An array of random entries of `table` in a buffer of NaN."""
    batch, heads, length, width = shape
    stored = encode(table, dtype)
    nan = encode(np.array([np.nan], np.float32), dtype)[0]
    placed = Placed(np.full(layout.buffer(shape), nan, stored.dtype), layout, shape)
    view = placed.view
    total, size = batch * heads * length * width, length * width
    pool = stored[rng.integers(0, 256, min(total, _POOL), np.uint8)]
    used = 0
    for b in range(batch):
        for h in range(heads):
            parts = []
            at = 0
            while at < size:  # a large cache is windows of the pool, each from another place
                start = used if total <= _POOL else int(rng.integers(pool.size // 2))
                parts.append(pool[start : start + size - at])
                at, used = at + parts[-1].size, used + parts[-1].size
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
            view[b, h] = rows.reshape(length, width)
    return placed


def _edges(rng: np.random.Generator, w: Workload) -> list[int]:
    """Keys behind an edge: of what rows may see, of tiles, of halves."""
    n = w.kv_len
    edges = [n - 1, 1, w.q_len, n // 2, *(1 << p for p in range(3, 13)), n - n % 32, n - n % 8]
    return list(dict.fromkeys(e for e in edges if 0 < e < n)) or [0]


def _targets(draw: Draw) -> tuple[Positions, Positions]:
    """Two key positions for each query row, [B, Hq, L] each: one on either side of an edge."""
    rng, w = draw.rng, draw.workload
    shape = (w.batch, w.q_heads, w.q_len)
    n = w.kv_len
    edges = _edges(rng, w)
    first = np.empty(int(np.prod(shape)), np.int64)
    second = np.empty_like(first)
    turn = int(rng.integers(len(edges)))
    for r, (b, h, i) in enumerate(np.ndindex(shape)):
        if r % 2 == 0:  # the ends of what the row may see, and the first keys beyond them
            ends = draw.ends(b, h, i)
            pick = int(rng.integers(len(ends) // 2))
            first[r], second[r] = ends[pick], ends[pick + len(ends) // 2]
        else:  # a tile's edge
            edge = edges[(turn + r // 2) % len(edges)]
            first[r], second[r] = edge - 1 if edge else 0, edge
        if r % 8 == 5:
            second[r] = rng.integers(n)
        if i == w.q_len - 1 and h % 2 == 0:  # under causality it alone sees the last key
            second[r] = n - 1
            if i or first[r] == n - 1:
                first[r] = max(0, n - 2)
    swapped = (np.arange(len(first)) // 2 + rng.integers(2)) % 2 == 1
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    return first.reshape(shape), second.reshape(shape)


def _spike(draw: Draw, values: Placed) -> None:
    """One value of every column as large as all others together, at the keys behind edges and at
    random ones: where weights are even, every such key decides a column."""
    rng, w = draw.rng, draw.workload
    n, width = w.kv_len, w.v_head_dim
    last = np.arange(max(0, n - w.q_len - 1), n)
    edges = np.array(_edges(rng, w))
    keys = np.unique(np.concatenate([[0], edges, edges - 1, rng.permutation(last)[:24]]))
    view = values.view
    size = float(np.sqrt((decode(view[0, 0], w.dtype) ** 2).mean()))
    most = min(n, 1e4, 2e4 / size if w.dtype == "float16" else n) * size
    for b in range(w.batch):
        for h in range(w.kv_heads):
            at = np.concatenate([keys, rng.integers(0, n, max(0, width - len(keys)))])
            at = rng.permutation(at)[:width]
            spikes = most * rng.uniform(0.5, 1.5, width) * rng.choice((-1, 1), width)
            view[b, h, at, np.arange(width)] = encode(spikes, w.dtype)


# Kinds


def _needles(draw: Draw) -> Content:
    """Each query points at two keys, e times as much at the first: at both sides of what it may
    see, of tiles, of halves. A lost, extra, shifted or foreign key changes the output wholly."""
    w = draw.workload
    top = float(np.log(w.kv_len)) + 6
    keys, values = draw.cache()
    first, second = _targets(draw)
    queries = draw.towards(keys, first, top) + draw.towards(keys, second, top - 1)
    if draw.seen is not None:  # beside a key that is hidden two are seen: else no logit counts
        seen = draw.rows
        row = tuple(np.ogrid[: w.batch, : w.q_heads, : w.q_len])
        some = draw.rng.integers(0, w.kv_len, (16, *first.shape))
        third = np.take_along_axis(some, seen[(*row, some)].argmax(0)[None], 0)[0]
        hidden = ~(seen[(*row, first)] & seen[(*row, second)]) & seen[(*row, third)]
        queries += draw.towards(keys, third, np.where(hidden, top - 1, 0.0))
    return draw.stored(queries, keys, values, top + draw.rng.uniform(-2, 2, w.q_heads))


def _strong(draw: Draw) -> Content:
    """Needles with logits of hundreds and thousands, in every other head all of them below zero.
    Far below the first key is all else that a row sees, and far above it what is hidden: what
    half precision keeps decides nothing."""
    w = draw.workload
    top = float(10 ** draw.rng.uniform(2.9, 3.4))
    keys, values = draw.cache()
    common = _share(draw, keys)
    first, second = _targets(draw)
    third, hidden = first.copy(), np.zeros(first.shape, np.bool_)
    for at in np.ndindex(first.shape) if draw.seen is not None else ():
        row = draw.rows[at]
        if not row[first[at]]:
            first[at], second[at] = second[at], first[at]
        if not row[first[at]] and row.any():
            first[at] = draw.rng.choice(np.flatnonzero(row))
        hidden[at] = not row[second[at]]
        if row.any():
            third[at] = draw.rng.choice(np.flatnonzero(row))
    queries = draw.towards(keys, second, np.where(hidden, 1.5 * top, 0.8 * top), common)
    # Beside a key that is hidden two are seen, and it does not weaken the first.
    beside = 0.5 * top - draw.logits(keys, third, queries)
    queries += draw.towards(keys, third, np.where(hidden, beside, 0.0), common)
    owed = np.where(hidden, draw.logits(keys, first, queries), 0)
    queries += draw.towards(keys, first, top - owed, common)
    if w.q_len * w.batch * w.q_heads * w.kv_len * w.head_dim <= _MOST_RIVALRY:
        # Keys that resemble each other rise together: where another one comes close to the first,
        # the row points at that alone.
        ahead = draw.logits(keys, first, queries) - _rivals(draw, keys, first, queries)
        near = (ahead < 0.1 * top)[..., None]
        queries = np.where(
            near, draw.towards(keys, first, np.full(first.shape, top), common), queries
        )
    head = np.arange(w.q_heads)
    negative = (head + head // 2) % 2 == 1
    below = np.where(negative, 2 * top, 0.0)
    shared = common.repeat(w.group, 1)
    size = (shared * shared).sum(-1, keepdims=True)
    queries -= shared / size * (below / draw.scale)[:, None, None]
    sinks = np.where(negative, np.where(head % 4 == 2, -0.5, -1.5), 0.3) * top
    return draw.stored(queries, keys, values, sinks)


def _rivals(draw: Draw, keys: Placed, first: Any, queries: Floats) -> Floats:
    """The largest logit of each row [B, Hq, L] among the keys that it sees, but for one; of a row
    that sees no other, -infinity."""
    w = draw.workload
    found = np.full(first.shape, -np.inf)
    for b, h in np.ndindex(w.batch, w.q_heads):
        logits = draw.scale * queries[b, h] @ decode(keys.view[b, h // w.group], w.dtype).T
        for i, row in enumerate(logits):
            others = draw.rows[b, h, i].copy() if draw.seen is not None else np.ones(len(row), bool)
            others[first[b, h, i]] = False
            found[b, h, i] = row[others].max(initial=-np.inf)
    return found


def _share(draw: Draw, keys: Placed) -> Floats:
    """Gives the keys of a head one vector in common, to which all else of them is orthogonal:
    these vectors [B, Hkv, 1, D]. The queries' part along one is a logit of all keys alike."""
    w, view = draw.workload, keys.view
    common = np.empty((w.batch, w.kv_heads, 1, w.head_dim))
    for b, h in np.ndindex(w.batch, w.kv_heads):
        rows = decode(view[b, h], w.dtype)
        own = _NORMAL[draw.rng.integers(0, 256, w.head_dim)].astype(np.float64)
        own *= 2 * np.sqrt((rows * rows).mean())
        rows += (1 - rows @ own / (own @ own))[:, None] * own
        view[b, h] = encode(rows.astype(np.float32), w.dtype)
        common[b, h, 0] = own
    return common


def _peaked(draw: Draw) -> Content:
    """Random logits with a deviation of 3, and the keys at both sides of an edge the largest."""
    w = draw.workload
    keys, values = draw.cache()
    size = float(np.sqrt((decode(keys.view[0, 0], w.dtype) ** 2).mean()))
    queries = draw.normal() * (3 / (draw.scale * w.head_dim**0.5 * size))
    top = 3 * (2 * np.log(w.kv_len)) ** 0.5
    first, second = _targets(draw)
    queries += draw.towards(keys, first, top) + draw.towards(keys, second, top - 1)
    sinks = 3 * draw.rng.standard_normal(w.q_heads) + np.log(w.kv_len)
    return draw.stored(queries, keys, values, sinks)


def _crowd(draw: Draw) -> Content:
    """Heavy keys whose values are zero: all of the answer is many light keys', down to e^-8 of
    their weight each, of more than 2000 still less. A few in one half of the keys are equal: many
    of a kernel's shares have one."""
    rng, w = draw.rng, draw.workload
    keys, values = draw.cache()
    if not w.latent:
        _spike(draw, values)
    heavy = _common(draw)
    if not w.latent:
        others = np.array(_edges(rng, w))
        others = np.setdiff1d(np.arange(w.kv_len - w.q_len - 1), [0, *others, *(others - 1)])
        for b, h in np.ndindex(heavy.shape):
            half = others[(others < w.kv_len // 2) == (heavy[b, h] < w.kv_len // 2)]
            parts = np.array_split(half, min(_HEAVY, len(half) // 4)) if len(half) > 3 else []
            equal = [heavy[b, h], *(rng.choice(part) for part in parts)]
            keys.view[b, h, equal] = keys.view[b, h, heavy[b, h]]
            values.view[b, h, equal] = 0
    total = float(np.log(w.kv_len))
    most = total - 1 if w.latent else 7.0 if w.dtype == "float16" else max(8.0, total + 1)
    tops = rng.uniform(1.5, max(2.0, most), (w.batch, w.q_heads, w.q_len))
    tops.reshape(-1)[::3] = most
    at = np.broadcast_to(heavy.repeat(w.group, 1)[:, :, None], tops.shape)
    queries = draw.towards(keys, at, tops)
    sinks = rng.uniform(0, 8, w.q_heads)
    return draw.stored(queries, keys, values, sinks)


def _common(draw: Draw) -> Positions:
    """A random key for each KV head, [B, Hkv], of those that many of its rows see."""
    rng, w = draw.rng, draw.workload
    chance = rng.random((w.batch, w.kv_heads, w.kv_len))
    if draw.seen is not None:
        rows = np.broadcast_to(draw.seen.sum(2), (w.batch, w.q_heads, draw.seen.shape[3]))
        rows = rows.reshape(w.batch, w.kv_heads, w.group, -1).sum(2)
        chance = np.where(2 * rows >= rows.max(-1, keepdims=True), chance, -1.0)
    return np.asarray(chance.argmax(-1))


def _even(draw: Draw) -> Content:
    """Logits near zero, of another deviation in every head from 0.005 to 1.5; or, at a scale of
    zero, zero."""
    rng, w = draw.rng, draw.workload
    keys, values = draw.cache()
    size = float(np.sqrt((decode(keys.view[0, 0], w.dtype) ** 2).mean()))
    deviations = np.resize(rng.permutation([0.005, 0.5, 1.5]), w.q_heads)[:, None, None]
    if not w.latent:
        _spike(draw, values)
    per_logit = draw.scale * w.head_dim**0.5 * size or 1.0
    queries = draw.normal() * (deviations / per_logit)
    sinks = np.log(w.kv_len) + rng.uniform(-6, 3, w.q_heads)
    return draw.stored(queries, keys, values, sinks)


def _large(draw: Draw) -> Content:
    """Weights of two sizes over values up to 5e4: in half precision a sum of these overflows, and
    one of weights is rounded the same way each time."""
    rng, w = draw.rng, draw.workload
    sinks = rng.standard_normal(w.q_heads)
    if w.latent:  # keys are the values: large ones would make large logits
        queries = draw.normal() * (0.5 / (8e2 * draw.scale * w.head_dim**0.5))
        keys = draw.filled(draw.keys, 3e4 + 3e2 * _NORMAL)
        return draw.stored(queries, keys, keys, sinks)
    keys = draw.filled(draw.keys, _NORMAL)
    key = keys.view[:, :, :1].copy()
    most = rng.random((w.batch, w.kv_heads, w.kv_len - 1, 1)) < 7 / 8
    keys.view[:, :, 1:] = np.where(most, encode(0.5 * decode(key, w.dtype), w.dtype), key)
    logits = rng.uniform(0.2, 1.2, (w.q_heads, w.q_len))
    shape = (w.batch, w.q_heads, w.q_len)
    queries = draw.towards(keys, np.zeros(shape, np.int64), logits)
    values = draw.filled(draw.values, 4e4 + 4e3 * _NORMAL)
    return draw.stored(queries, keys, values, sinks - 30)


def _flat(draw: Draw) -> Content:
    """All logits of a row are 120 or -120, by head: a softmax without its maximum overflows or
    divides by zero, a padded key with logit 0 takes all. Beyond two heads of the first sequence
    their size is drawn, up to that. Every other column of V is constant; where keys are the
    values, what queries see of them is."""
    w = draw.workload
    keys = values = draw.filled(draw.keys, _NORMAL)
    head = np.arange(w.q_heads)
    sign = np.where(head % 2, 1.0, -1.0)
    # Numbers of 4 bits: logits that are rounded, as MLX's are, come out alike for all keys.
    drawn = 120 ** draw.rng.random((w.batch, w.q_heads, w.q_len))
    part, power = np.frexp(drawn)
    size = np.ldexp(np.round(16 * part) / 16, power)
    size[0, :2] = 120
    logits = size * sign[:, None]
    if w.latent:
        common = _share(draw, keys).repeat(w.group, 1)
        square = (common * common).sum(-1, keepdims=True)
        queries = common * (logits[..., None] / (draw.scale * square))
    else:
        keys.view[:] = keys.view[:, :, :1]
        queries = draw.towards(keys, np.zeros(logits.shape, np.int64), logits)
        values = draw.filled(draw.values, _NORMAL + 0.5)
        _spike(draw, values)
        values.view[..., ::2] = values.view[:, :, :1, ::2]
    sinks = logits.min((0, 2)) + np.where(head // 2 % 2, 6000, -40)
    return draw.stored(queries, keys, values, sinks)


def _count(draw: Draw) -> Content:
    """Queries of zero, so that all weights are equal, and values that count keys. Sinks are one key
    more."""
    w = draw.workload
    keys = values = draw.filled(draw.keys, _NORMAL)
    if not w.latent:
        values = draw.filled(draw.values, _NORMAL)
    values.view[..., : w.v_head_dim] = signs(draw.rng, w)
    queries = np.zeros((w.batch, w.q_heads, w.q_len, w.head_dim), np.float32)
    return Content(queries, keys, values, np.zeros(w.q_heads))


def signs(rng: np.random.Generator, w: Workload) -> Array:
    """Values of +1 and -1 [B, Hkv, N, Dv], as stored: of two neighbours in a column one each, which
    of them is drawn, and from the first or the second key on. Any run of keys sums to next to
    nothing then, but does so in no two columns alike: the sum of weighted values is counted. About
    every eighth column is +1 throughout: what that sum is divided by is counted. All heads are
    windows of the same rows."""
    pairs, width = (w.kv_len + _WINDOW) // 2 + 1, w.v_head_dim
    first = rng.integers(0, 2, (pairs, 1, width), np.uint8)
    both = np.concatenate([first, 1 - first], 1).reshape(2 * pairs, width)
    rows = np.where(rng.random(width) < 0.5, both[:-1], both[1:])
    rows[:, rng.random(width) < 1 / 8] = 1
    table = encode(np.array([-1.0, 1.0]), w.dtype)[rows]
    stored = np.empty((w.batch, w.kv_heads, w.kv_len, width), table.dtype)
    for b, h in np.ndindex(w.batch, w.kv_heads):
        start = int(rng.integers(_WINDOW))
        stored[b, h] = table[start : start + w.kv_len]
    return stored


CONTENTS: dict[str, Callable[[Draw], Content]] = {
    "needles": _needles,
    "strong": _strong,
    "peaked": _peaked,
    "crowd": _crowd,
    "even": _even,
    "large": _large,
    "flat": _flat,
    "count": _count,
}

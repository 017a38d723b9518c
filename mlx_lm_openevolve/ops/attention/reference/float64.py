"""Float64 attention, a case of it, and what an answer is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...encoding import Array, Bool, Float, decode, lowest, smallest, upload
from ..workload import Workload
from .layouts import Packed, Placed

__all__ = ["Case", "Inputs", "Reference", "attention", "causal", "visible"]

Operand = mx.array | tuple[mx.array, ...]

# Elements of K and V that `reference` converts to float64 for a case, and its query rows.
_REFERENCE_ELEMENTS = 2 << 20
_REFERENCE_ROWS = 16
# A row whose largest score is lower than this sees no key.
_UNSEEN = -3e4


def attention(
    queries: Float,
    keys: Float,
    values: Float,
    scale: float,
    mask: Array | None = None,
    sinks: Float | None = None,
    sizes: Float | None = None,
) -> tuple[Float, Float, float]:
    """Attention of one KV head in float64: (out, mass, largest logit), the arrays [G, R, Dv].

    queries [G, R, D] for the G query heads that share keys [N, D] and values [N, Dv]; mask bool
    or additive, broadcast to [G, R, N]; sinks [G] are logits of a key without a value. mass is
    the sum of p_j |v_j|, or of p_j times `sizes` [N, Dv]. A row with every key masked spreads
    evenly over all keys, as MLX's own composition does (with sinks it is zero). The largest logit
    is that of any key before the mask, and of the first key of a row after it: what rounding of
    scores is relative to.
    """
    scores = np.einsum("grd,nd->grn", queries, keys, optimize=True) * scale
    largest = float(np.abs(scores).max())
    if mask is not None:
        floor = np.finfo(np.float64).min
        scores = np.where(mask, scores, floor) if mask.dtype == np.bool_ else scores + mask
    top = scores.max(-1, keepdims=True)
    largest = max(largest, float(np.abs(top[top > _UNSEEN]).max(initial=0.0)))
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.maximum(top, np.finfo(np.float64).min)  # a row of -inf stays a row of zeros
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    weights /= np.maximum(total, np.finfo(np.float64).tiny)
    return weights @ values, weights @ (np.abs(values) if sizes is None else sizes), largest


@dataclass(frozen=True, eq=False)
class Inputs:
    """A case on the device: what a call is handed, and the buffers that its views look into."""

    queries: mx.array
    keys: Operand
    values: Operand
    scale: mx.array
    mask: mx.array | None
    sinks: mx.array | None
    buffers: tuple[mx.array, ...]


@dataclass(frozen=True, eq=False)
class Reference:
    """Float64 results for sampled (batch, KV head) pairs and query rows; `mass`, the unit of
    errors, broadcasts to them."""

    rows: npt.NDArray[np.int64]
    pairs: tuple[tuple[int, int], ...]
    out: tuple[Float, ...]  # one [G, R, Dv] for each pair
    mass: tuple[Float, ...]
    live: tuple[Bool, ...]  # [G, R]: rows with at least one visible key
    logit: float  # the largest magnitude of a logit

    def error(self, out: Array) -> tuple[float, float]:
        """(max, root mean square) of |out - reference| / mass for out [B, Hq, L, Dv]; inf where
        it is NaN."""
        worst, total, count = 0.0, 0.0, 0
        for (b, h), want, mass, live in zip(
            self.pairs, self.out, self.mass, self.live, strict=True
        ):
            group = want.shape[0]
            got = out[b, h * group : (h + 1) * group][:, self.rows].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                off = (np.abs(got - want) / mass)[live]
            off = np.where(np.isfinite(off), off, np.inf)
            if off.size:
                worst = max(worst, float(off.max()))
                with np.errstate(over="ignore"):
                    total, count = total + float((off * off).sum()), count + off.size
        return worst, (total / max(count, 1)) ** 0.5


@dataclass(frozen=True, eq=False)
class Case:
    """One attention call as NumPy arrays, stored as `encode` does.

    workload is exact; queries, keys, values and mask are views into buffers that hold NaN, or a
    mask's opposite, around them: those of `placed`, by name; keys and values may be Packed. mask
    has the form in which mlx-lm passes it (None, bool, or additive), not broadcast. beside makes
    the case in which the keys of a call of these shapes and this layout are counted, if they are.
    """

    name: str
    workload: Workload
    scale: float
    queries: Array
    keys: Array | Packed
    values: Array | Packed
    mask: Array | None
    sinks: Array | None
    seed: int
    placed: Mapping[str, Placed] = field(default_factory=dict)
    beside: Callable[[], Case] | None = None

    def upload(self) -> Inputs:
        """The case as evaluated MLX arrays, laid out as `placed` says."""
        w = self.workload
        held: list[mx.array] = []
        queries = self._stored("queries", self.queries, held)
        keys = self._stored("keys", self.keys, held)
        inputs = Inputs(
            queries=queries,
            keys=keys,
            values=keys if w.latent else self._stored("values", self.values, held),
            scale=mx.array([self.scale], mx.float32),
            mask=None if self.mask is None else self._stored("mask", self.mask, held),
            sinks=None if self.sinks is None else upload(self.sinks, w.dtype),
            buffers=tuple(held),
        )
        mx.eval(inputs.queries, inputs.keys, inputs.values, inputs.mask, *inputs.buffers)
        return inputs

    def call(self, queries: mx.array, keys: Operand) -> tuple[Any, ...]:
        """What a call is handed, with queries and keys that are on the device already; in a latent
        cache, where keys are the values, with its own."""
        w, held = self.workload, []  # type: tuple[Workload, list[mx.array]]
        values = self._stored("values", self.values, held)
        return (
            queries,
            values if w.latent else keys,
            values,
            mx.array([self.scale], mx.float32),
            None if self.mask is None else self._stored("mask", self.mask, held),
            None if self.sinks is None else upload(self.sinks, w.dtype),
        )

    def _stored(self, name: str, x: Array | Packed, held: list[mx.array]) -> Any:
        """An operand on the device; its buffers are appended to `held`."""
        if isinstance(x, Packed):
            return tuple(part.upload(self.workload.dtype, held) for part in x.placed)
        if name in self.placed:
            return self.placed[name].upload(self.workload.dtype, held)
        held.append(upload(np.ascontiguousarray(x), self.workload.dtype))
        return held[-1]

    def dead_rows(self) -> Bool:
        """Rows [B, Hq, L] with every key masked: no implementation owes a value there."""
        w = self.workload
        seen = visible(w, self.mask)
        dead = np.zeros((1, 1, 1), np.bool_) if seen is None else ~seen.any(-1)
        return np.broadcast_to(dead, (w.batch, w.q_heads, w.q_len))

    def seen_share(self) -> float:
        """The share of all KV heads' keys that some row sees."""
        w = self.workload
        seen = visible(w, self.mask)
        if seen is None:
            return 1.0
        rows = np.broadcast_to(seen.any(2), (w.batch, w.q_heads, w.kv_len))
        return float(rows.reshape(w.batch, w.kv_heads, -1, w.kv_len).any(2).mean())

    def reference(self) -> Reference:
        """Float64 results for as many (batch, KV head) pairs and rows as are affordable; the
        first and the last of each are among them, unless one pair is all."""
        w, dead = self.workload, self.dead_rows()
        rows, pairs = self._sampled()
        outs, masses, live, logit = [], [], [], 0.0
        for b, h in pairs:
            heads = slice(h * w.group, (h + 1) * w.group)
            out, mass, largest = self._exact(b, heads, rows)
            logit = max(logit, largest)
            outs.append(out)
            masses.append(mass)
            live.append(~dead[b, heads][:, rows])
        return Reference(rows, pairs, tuple(outs), tuple(masses), tuple(live), logit)

    def row_error(self, batch: int, head: int, row: int, got: Array) -> float:
        """Largest |got - reference| / mass of one row [Dv]; inf where it is no number."""
        out, mass, _ = self._exact(batch, slice(head, head + 1), np.array([row]))
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(got.astype(np.float64) - out[0, 0]) / mass[0, 0]
        return float(np.where(np.isfinite(off), off, np.inf).max())

    def counted(self) -> Reference:
        """The answer where all logits are 0: the means of the values +1 and -1 that rows see, a
        sink among their number, for pairs and rows as in `reference`. Errors are in units of one
        key of a row over the number of all keys; where a column is +1 throughout no finer than
        weights in the dtype of the answer allow, as MLX has them on a CPU. A row that sees no key
        has the mean of those with the largest mask value, and is not live."""
        w = self.workload
        rows, pairs = self._sampled()
        seen, dead = _heaviest(w, self.mask), self.dead_rows()
        finest = 1.5 * w.kv_len * float(mx.finfo(getattr(mx, w.dtype)).eps)
        outs, masses, live = [], [], []
        for b, h in pairs:
            heads = slice(h * w.group, (h + 1) * w.group)
            values = _rows(self.values, b, h, w.dtype).astype(np.float32)  # its sums are exact
            alive = ~dead[b, heads][:, rows]
            sums, count = values.sum(0), np.full((*alive.shape, 1), float(w.kv_len))
            if seen is not None:
                part = np.broadcast_to(_part(seen, b, heads, rows), (*alive.shape, w.kv_len))
                sums, count = part.astype(np.float32) @ values, part.sum(-1, keepdims=True)
            if self.sinks is not None:
                count = count + alive[..., None]
            outs.append(sums / np.maximum(count, 1))
            same = (values == values[0]).all(0)
            masses.append(np.maximum(w.kv_len / np.maximum(count, 1), np.where(same, finest, 0)))
            live.append(alive)
        return Reference(rows, pairs, tuple(outs), tuple(masses), tuple(live), 0.0)

    def _sampled(self) -> tuple[npt.NDArray[np.int64], tuple[tuple[int, int], ...]]:
        """Query rows, and pairs of a sequence and a KV head, of which results are affordable."""
        w, rng = self.workload, np.random.default_rng(self.seed)
        rows = _sample(rng, w.q_len, _REFERENCE_ROWS)
        share = w.kv_len * (w.head_dim + w.v_head_dim)
        count = max(1, _REFERENCE_ELEMENTS // share)
        pairs = (divmod(int(i), w.kv_heads) for i in _sample(rng, w.batch * w.kv_heads, count))
        return rows, tuple(pairs)

    def _exact(
        self, batch: int, heads: slice, rows: npt.NDArray[np.int64]
    ) -> tuple[Float, Float, float]:
        """Float64 attention of some rows of query heads that share a KV head."""
        w = self.workload
        kv_head = heads.start // w.group
        mask: Array | None = visible(w, self.mask) if w.mask in ("causal", "bool") else None
        if self.mask is not None and w.mask == "additive":
            mask = decode(self.mask, w.dtype)
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        values, sizes = _rows(self.values, batch, kv_head, w.dtype), None
        if isinstance(self.values, Packed):
            sizes = np.abs(values) + self.values.steps(batch, kv_head)
        out, mass, largest = attention(
            decode(self.queries[batch, heads][:, rows], w.dtype),
            _rows(self.keys, batch, kv_head, w.dtype),
            values,
            self.scale,
            None if mask is None else _part(mask, batch, heads, rows),
            None if self.sinks is None else decode(self.sinks[heads], w.dtype),
            sizes,
        )
        return out, np.maximum(mass, smallest(w.dtype)), largest


def _rows(x: Array | Packed, batch: int, head: int, dtype: str) -> Float:
    """The float64 rows of one KV head."""
    return x.decode(batch, head) if isinstance(x, Packed) else decode(x[batch, head], dtype)


def visible(w: Workload, mask: Array | None) -> Bool | None:
    """Which keys a row may see, broadcastable to [B, Hq, L, N]; None where it is all."""
    if w.mask == "causal":
        return causal(w.q_len, w.kv_len)[None, None]
    if mask is None:
        return None
    if mask.dtype == np.bool_:
        seen: Bool = np.asarray(mask, np.bool_)
    else:
        seen = decode(mask, w.dtype) > lowest(w.dtype) / 2
    return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)


def _heaviest(w: Workload, mask: Array | None) -> Bool | None:
    """The keys of equal weight where all logits are 0 and a mask adds nothing to those that a row
    sees: these, or of a row that sees none those with the largest mask value; as `visible`."""
    seen = visible(w, mask)
    if seen is None:
        return None
    unseen = np.ones_like(seen)
    if mask is not None and w.mask == "additive":
        added = decode(mask, w.dtype).reshape(seen.shape)
        unseen = added == added.max(-1, keepdims=True)
    return np.where(seen.any(-1, keepdims=True), seen, unseen)


def _part(mask: Array, b: int, heads: slice, rows: npt.NDArray[np.int64]) -> Array:
    """What a mask [B|1, Hq|1, L|1, N] says to some rows of a batch entry and its heads."""
    part = mask[b if mask.shape[0] > 1 else 0]
    part = part[heads] if part.shape[0] > 1 else part
    part = part[:, rows] if part.shape[1] > 1 else part
    return np.asarray(part)


def causal(q_len: int, kv_len: int) -> Bool:
    seen: Bool = np.arange(kv_len) <= np.arange(kv_len - q_len, kv_len)[:, None]
    return seen


def _sample(rng: np.random.Generator, n: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of range(n), sorted; from two on the first and the last among them."""
    if n <= count:
        return np.arange(n)
    if count == 1:
        return rng.integers(0, n, 1)
    inner = rng.choice(np.arange(1, n - 1), count - 2, replace=False)
    return np.sort(np.concatenate([[0, n - 1], inner]).astype(np.int64))

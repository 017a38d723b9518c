"""Cases of a bucket: shapes at its edges, contents that show mistakes, masks in mlx-lm's forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..workload import Q_LEN_BUCKETS, Bucket, Workload
from .encoding import LEAD, TAIL, Array, Bool, Packed, decode, encode, lowest, pack, upload
from .float64 import Case, causal, visible

__all__ = ["KINDS", "case", "cases", "mask"]

# Elements of a mask of its own for every head.
_MASK_ELEMENTS = 16 << 20
# Random entries that are drawn for a cache; a larger one repeats them, shifted.
_POOL = 4 << 20

# 256 quantiles of the standard normal: a random byte is an index, which is fast for large caches.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)
_SIGNS = np.where(np.arange(256) < 128, np.float32(1), np.float32(-1))


# Shapes: the edges of a bucket


def _q_range(bucket: Bucket | Workload) -> tuple[int, int]:
    below = [n for n in Q_LEN_BUCKETS if n < bucket.q_len]
    low = below[-1] + 1 if below else 1
    return min(low, bucket.kv_len), min(bucket.q_len, bucket.kv_len)


def _shapes(rng: np.random.Generator, bucket: Bucket | Workload) -> list[Workload]:
    """Exact workloads of a bucket: both ends, next to an end, and off every tile."""
    q_low, q_high = _q_range(bucket)
    kv_low, kv_high = bucket.kv_len // 2 + 1, bucket.kv_len
    b_low = bucket.batch // 2 + 1
    odd = int(rng.integers(kv_low, kv_high + 1)) | 1

    def shape(batch: int, q_len: int, kv_len: int) -> Workload:
        kv_len = max(min(kv_len, kv_high), q_len, kv_low)
        return bucket.exact(batch=batch, q_len=q_len, kv_len=kv_len)

    return [
        shape(bucket.batch, q_high, kv_high),
        shape(b_low, q_low, kv_low),
        shape(bucket.batch, q_high, odd),
        shape(b_low, q_low, kv_high - 1),
    ]


# Contents: what each kind of input makes visible


def _filled(rng: np.random.Generator, shape: tuple[int, ...], table: Array, dtype: str) -> Array:
    """A cache slice of random entries of `table` inside a buffer of NaN."""
    batch, heads, length, width = shape
    buffer = np.empty((batch, heads, LEAD + length + TAIL, width), encode(table[:1], dtype).dtype)
    nan = encode(np.array([np.nan], np.float32), dtype)[0]
    buffer[:, :, :LEAD] = nan
    buffer[:, :, LEAD + length :] = nan
    stored = encode(table, dtype)
    total = batch * heads * length * width
    pool = stored[rng.integers(0, 256, min(total, _POOL), np.uint8)]
    used = 0
    for b in range(batch):
        for h in range(heads):
            rows = buffer[b, h, LEAD : LEAD + length].reshape(-1)
            at = 0
            while at < rows.size:  # a large cache is windows of the pool, each from another place
                start = used if total <= _POOL else int(rng.integers(pool.size // 2))
                part = pool[start : start + rows.size - at]
                rows[at : at + part.size] = part
                at, used = at + part.size, used + part.size
    return buffer[:, :, LEAD : LEAD + length]


@dataclass(frozen=True, eq=False)
class _Content:
    """Arrays of one kind before they are stored: queries and sinks in float32."""

    queries: Array
    keys: Array
    values: Array
    sinks: Array


def _shape_of(w: Workload, width: int) -> tuple[int, int, int, int]:
    return (w.batch, w.kv_heads, w.kv_len, width)


def _needles(rng: np.random.Generator, w: Workload, scale: float, seen: Bool | None) -> _Content:
    """Each query points at two keys, e times as much at the first: at both sides of what it may
    see, of tiles, of halves. A lost, extra, shifted or foreign key changes the output wholly."""
    keys = _filled(rng, _shape_of(w, w.head_dim), _SIGNS, w.dtype)
    values = _filled(rng, _shape_of(w, w.v_head_dim), _NORMAL, w.dtype)
    top = float(np.log(w.kv_len)) + 6
    first, second = _targets(rng, w, seen)
    b, h = np.ogrid[: w.batch, : w.q_heads]
    b, h = b[..., None], (h // w.group)[..., None]
    a = decode(keys[b, h, first], w.dtype)
    c = decode(keys[b, h, second], w.dtype)
    queries = (a + (1 - 1 / top) * c) * (top / (scale * w.head_dim))
    sinks = top + rng.uniform(-1, 1, w.q_heads)
    return _Content(queries, keys, values, sinks)


def _targets(
    rng: np.random.Generator, w: Workload, seen: Bool | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two key positions for each query row, [B, Hq, L] each: one on either side of an edge."""
    shape = (w.batch, w.q_heads, w.q_len)
    rows = int(np.prod(shape))
    n = w.kv_len
    edges = [n - 1, 1, w.q_len, n // 2, *(1 << p for p in range(3, 13)), n - n % 32, n - n % 8]
    edges = list(dict.fromkeys(e for e in edges if 0 < e < n)) or [0]
    first = np.empty(rows, np.int64)
    second = np.empty(rows, np.int64)
    turn = int(rng.integers(len(edges)))
    for r, (b, h, i) in enumerate(np.ndindex(shape)):
        if seen is None:
            ends = np.array([0, n - 1])
        else:
            row = seen[min(b, seen.shape[0] - 1), min(h, seen.shape[1] - 1)]
            row = row[min(i, row.shape[0] - 1)]
            steps = np.flatnonzero(row[1:] != row[:-1])
            ends = np.concatenate([steps, steps + 1])
            if r % 4 == 3 or not ends.size:
                ends = np.flatnonzero(row)[[0, -1]] if row.any() else np.array([0, n - 1])
        if r % 2 == 0:  # the ends of what the row may see, and the first keys beyond them
            pick = int(rng.integers(len(ends) // 2))
            first[r], second[r] = ends[pick], ends[pick + len(ends) // 2]
        else:  # a tile's edge
            edge = edges[(turn + r // 2) % len(edges)]
            first[r], second[r] = edge - 1 if edge else 0, edge
        if r % 8 == 5:
            second[r] = rng.integers(n)
    if rng.integers(2):
        first, second = second, first
    return first.reshape(shape), second.reshape(shape)


def _peaked(rng: np.random.Generator, w: Workload, scale: float, seen: Bool | None) -> _Content:
    """Random logits with a deviation of 3: a few keys carry most of the weight."""
    shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
    queries = _NORMAL[rng.integers(0, 256, shape, np.uint8)] * (3 / (scale * w.head_dim**0.5))
    return _Content(
        queries,
        _filled(rng, _shape_of(w, w.head_dim), _NORMAL, w.dtype),
        _filled(rng, _shape_of(w, w.v_head_dim), _NORMAL, w.dtype),
        3 * rng.standard_normal(w.q_heads) + np.log(w.kv_len),
    )


def _large(rng: np.random.Generator, w: Workload, scale: float, seen: Bool | None) -> _Content:
    """Nearly even weights over values up to 5e4: a sum kept in half precision overflows."""
    shape = (w.batch, w.q_heads, w.q_len, w.head_dim)
    queries = _NORMAL[rng.integers(0, 256, shape, np.uint8)] * (0.5 / (scale * w.head_dim**0.5))
    if w.latent:  # keys are the values: large ones would make large logits
        keys = _filled(rng, _shape_of(w, w.head_dim), 300 + 30 * _NORMAL, w.dtype)
        return _Content(queries / 30, keys, keys, rng.standard_normal(w.q_heads))
    return _Content(
        queries,
        _filled(rng, _shape_of(w, w.head_dim), _NORMAL, w.dtype),
        _filled(rng, _shape_of(w, w.v_head_dim), 4e4 + 4e3 * _NORMAL, w.dtype),
        rng.standard_normal(w.q_heads),
    )


def _flat(rng: np.random.Generator, w: Workload, scale: float, seen: Bool | None) -> _Content:
    """All logits of a row are 120 or -120, by head: a softmax without its maximum overflows or
    divides by zero, a padded key with logit 0 takes all. Every other column of V is constant."""
    keys = _filled(rng, _shape_of(w, w.head_dim), _SIGNS, w.dtype)
    keys[:] = keys[:, :, :1]
    values = _filled(rng, _shape_of(w, w.v_head_dim), _NORMAL + 0.5, w.dtype)
    values[..., ::2] = values[:, :, :1, ::2]
    sign = np.where(np.arange(w.q_heads) % 2, 1.0, -1.0)[None, :, None, None]
    direction = decode(keys[:, :, :1], w.dtype).repeat(w.group, 1)
    queries = np.broadcast_to(
        direction * sign * (120 / (scale * w.head_dim)),
        (w.batch, w.q_heads, w.q_len, w.head_dim),
    )
    return _Content(queries, keys, values, 120 * sign.ravel() + np.log(w.kv_len))


KINDS = {"needles": _needles, "peaked": _peaked, "large": _large, "flat": _flat}


# Masks, in the forms in which mlx-lm passes them


def _mask(rng: np.random.Generator, w: Workload, form: str, padded: bool) -> Array | None:
    """An array mask in one of three forms, [B, 1, L, N], [L, N] (or [N]) and [B, Hq, L, N].

    padded=False leaves the last sequence without padding even where it is the only one."""
    if w.mask in ("none", "causal"):
        return None
    if form == "heads" and w.batch * w.q_heads * w.q_len * w.kv_len > _MASK_ELEMENTS:
        form = "padding"
    seen = causal(w.q_len, w.kv_len)
    if form == "padding":  # BatchKVCache: [B, 1, L, N], each sequence padded on its left
        pads = rng.integers(1, max(2, w.kv_len // 2), w.batch)
        if w.batch > 1 or not padded:
            pads[-1] = 0  # the longest sequence has none
        seen = seen & (np.arange(w.kv_len) >= pads[:, None, None, None])
        if w.q_len > 1:
            seen[0, 0, 0] = False
    elif form == "window":  # RotatingKVCache: [N] when decoding, [L, N] in prefill
        window = max(1, w.kv_len // 3)
        rows = np.arange(w.kv_len - w.q_len, w.kv_len)[:, None]
        seen = seen & (np.arange(w.kv_len) > rows - window)
        seen = seen[0] if w.q_len == 1 else seen
    else:  # one of its own for every head
        seen = seen & (rng.random((w.batch, w.q_heads, w.q_len, w.kv_len)) < 0.7)
        if w.batch * w.q_heads * w.q_len > 1:
            seen[0, 0, 0] = False
    if w.mask == "bool":
        return seen
    bias = rng.standard_normal(seen.shape, np.float32)
    hidden = -np.inf if form == "window" else lowest(w.dtype)
    return encode(np.where(seen, bias, np.float32(hidden)), w.dtype)


@dataclass(frozen=True)
class _Plan:
    """One case: kind, index of its shape, factor on 1/sqrt(D) (models scale by other numbers
    too), the form of its mask where it has one, and whether its keys and values lie in memory
    column by column."""

    kind: str
    shape: int
    factor: float
    form: str
    padded: bool = True
    columns: bool = False


_PLANS = (
    _Plan("needles", 0, 1.0, "padding", padded=False),
    _Plan("peaked", 0, 0.75, "window"),
    _Plan("needles", 1, 1.25, "window"),
    _Plan("large", 1, 1.0, "heads"),
    _Plan("flat", 2, 1.5, "padding"),
    _Plan("needles", 2, 0.75, "heads", columns=True),
    _Plan("needles", 3, 1.0, "padding"),
    _Plan("peaked", 3, 1.25, "heads"),
)


def cases(bucket: Bucket | Workload, seed: int) -> Iterator[Case]:
    """The cases of a bucket, made one at a time; every one differs from the others in kind,
    shape, scale or form of the mask."""
    shapes = _shapes(np.random.default_rng([seed, 0]), bucket)
    for turn, plan in enumerate(_PLANS):
        yield _case(plan, shapes[plan.shape], seed, turn)


def mask(workload: Workload, seed: int) -> mx.array | None:
    """An array mask to time a workload with, every key seen that causality allows: a batch of
    equal lengths. Padding would be work that a kernel may skip: it is not timed. A bias
    of its own for every head where the mask is additive; None where there is no array mask."""
    w = workload
    if w.mask in ("none", "causal"):
        return None
    seen = np.broadcast_to(causal(w.q_len, w.kv_len), (w.batch, 1, w.q_len, w.kv_len))
    if w.mask == "bool":
        return upload(np.ascontiguousarray(seen), w.dtype)
    heads = w.q_heads if seen.size * w.q_heads <= _MASK_ELEMENTS else 1
    rng = np.random.default_rng([seed, 99])
    bias = rng.standard_normal((w.batch, heads, w.q_len, w.kv_len), np.float32)
    return upload(encode(np.where(seen, bias, np.float32(lowest(w.dtype))), w.dtype), w.dtype)


def case(kind: str, workload: Workload, seed: int) -> Case:
    """One case of a kind (see KINDS) for an exact workload."""
    return _case(_Plan(kind, 0, 1.0, "padding"), workload, seed, len(_PLANS))


def _case(plan: _Plan, w: Workload, seed: int, turn: int) -> Case:
    rng = np.random.default_rng([seed, 1 + turn])
    scale = float(np.float32(plan.factor * w.head_dim**-0.5))
    masking = _mask(rng, w, plan.form, plan.padded)
    name = f"{plan.kind} batch={w.batch} q_len={w.q_len} kv_len={w.kv_len}"
    if masking is not None:
        name += f" mask={'x'.join(str(n) for n in masking.shape)}"
    content = KINDS[plan.kind](rng, w, scale, visible(w, masking))
    keys: Array | Packed = content.keys
    values: Array | Packed = content.keys if w.latent else content.values
    if w.kv_bits:
        keys, values = (
            pack(x, w.dtype, w.kv_bits, w.kv_group, aligned=turn % 2 == 0)
            for x in (content.keys, content.values)
        )
    return Case(
        name=name,
        workload=w,
        scale=scale,
        queries=encode(content.queries, w.dtype),
        keys=keys,
        values=values,
        mask=masking,
        sinks=encode(content.sinks, w.dtype) if w.sinks else None,
        seed=seed,
        columns=plan.columns,
    )

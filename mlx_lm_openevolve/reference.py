"""Reference: attention in float64, and inputs on which a wrong kernel cannot look right.

    bucket --cases(seed)--> Case (NumPy) --upload()--> Inputs (MLX) --> the kernel under test
                              `--truth()--> Truth (float64) --error(out)--> (max, average)

The inputs of a seed are the same on every device: all randomness comes from NumPy generators, and
mx.random is never touched. An error is measured against what the arithmetic can be held to: for
one output element, in units of `mass`, the sum of p_j |v_j| over the keys. Zeros, the mean of V or
a lost key are then errors of order one, whatever the magnitude of V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .workload import Q_LEN_BUCKETS, Workload

__all__ = [
    "KINDS",
    "Case",
    "Inputs",
    "Truth",
    "attention",
    "case",
    "cases",
    "decode",
    "encode",
    "mask",
    "sdpa",
    "smallest",
]

Array = npt.NDArray[np.generic]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# A KV cache hands over a slice of a longer buffer: rows before and after it that must not be read.
_LEAD, _TAIL = 3, 5
# Elements of K and V that `truth` converts to float64 for a case, and of a mask that is built.
_TRUTH_ELEMENTS = 2 << 20
_MASK_ELEMENTS = 16 << 20
_TRUTH_ROWS = 16
# Random entries that are drawn for a cache with more than that for each head.
_POOL = 1 << 20

# 256 quantiles of the standard normal: a random byte is an index, which is fast for large caches.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)
_SIGNS = np.where(np.arange(256) < 128, np.float32(1), np.float32(-1))


def encode(x: Array, dtype: str) -> Array:
    """`x` rounded to a dtype as stored: bfloat16 as its 16 bits (NumPy has no such type)."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16)
    bits = x.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def decode(x: Array, dtype: str) -> Float:
    """The float64 values of an array as `encode` stores it."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def _upload(x: Array, dtype: str) -> mx.array:
    array = mx.array(x)
    return array.view(mx.bfloat16) if dtype == "bfloat16" and x.dtype == np.uint16 else array


def attention(
    queries: Float,
    keys: Float,
    values: Float,
    scale: float,
    mask: Array | None = None,
    sinks: Float | None = None,
) -> tuple[Float, Float, float]:
    """Attention of one KV head in float64: (out, mass, largest logit), the arrays [G, R, Dv].

    queries [G, R, D] for the G query heads that share keys [N, D] and values [N, Dv]; mask bool
    or additive, broadcast to [G, R, N]; sinks [G] are logits of a key without a value. mass is
    the sum of p_j |v_j|. A row with every key masked spreads evenly over all keys, as MLX's own
    composition does (with sinks it is zero).
    """
    scores = np.einsum("grd,nd->grn", queries, keys, optimize=True) * scale
    largest = float(np.abs(scores).max())
    if mask is not None:
        floor = np.finfo(np.float64).min
        scores = np.where(mask, scores, floor) if mask.dtype == np.bool_ else scores + mask
    top = scores.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.maximum(top, np.finfo(np.float64).min)  # a row of -inf stays a row of zeros
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    weights /= np.maximum(total, np.finfo(np.float64).tiny)
    return weights @ values, weights @ np.abs(values), largest


@dataclass(frozen=True, eq=False)
class Inputs:
    """A case on the device: what a call is handed, and the buffers that its views look into."""

    queries: mx.array
    keys: mx.array
    values: mx.array
    scale: mx.array
    mask: mx.array | None
    sinks: mx.array | None
    buffers: tuple[mx.array, ...]


@dataclass(frozen=True, eq=False)
class Truth:
    """Float64 results for sampled (batch, KV head) pairs and query rows."""

    rows: npt.NDArray[np.int64]
    pairs: tuple[tuple[int, int], ...]
    out: tuple[Float, ...]  # one [G, R, Dv] for each pair
    mass: tuple[Float, ...]
    live: tuple[Bool, ...]  # [G, R]: rows with at least one visible key
    logit: float  # the largest magnitude of a logit

    def error(self, out: Array) -> tuple[float, float]:
        """(max, average) of |out - truth| / mass for an output [B, Hq, L, Dv]; inf where NaN."""
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
                total, count = total + float(off.sum()), count + off.size
        return worst, total / max(count, 1)


@dataclass(frozen=True, eq=False)
class Case:
    """One attention call as NumPy arrays, stored as `encode` does.

    workload is exact; keys and values are [B, Hkv, N, D] views into buffers that hold NaN around
    them; mask has the form in which mlx-lm passes it (None, bool, or additive), not broadcast.
    """

    name: str
    workload: Workload
    scale: float
    queries: Array
    keys: Array
    values: Array
    mask: Array | None
    sinks: Array | None
    seed: int

    def upload(self) -> Inputs:
        """The case as evaluated MLX arrays: caches are strided slices, queries transposed views
        of [B, L, Hq, D] as the models make them."""
        w = self.workload
        queries = _upload(np.ascontiguousarray(self.queries.transpose(0, 2, 1, 3)), w.dtype)
        keys = _upload(np.asarray(self.keys.base), w.dtype)
        values = _upload(np.asarray(self.values.base), w.dtype)
        window = slice(_LEAD, _LEAD + w.kv_len)
        inputs = Inputs(
            queries=queries.transpose(0, 2, 1, 3),
            keys=keys[:, :, window],
            values=values[:, :, window],
            scale=mx.array([self.scale], mx.float32),
            mask=None if self.mask is None else _upload(self.mask, w.dtype),
            sinks=None if self.sinks is None else _upload(self.sinks, w.dtype),
            buffers=(queries, keys, values),
        )
        mx.eval(inputs.queries, inputs.keys, inputs.values, *inputs.buffers)
        return inputs

    def dead_rows(self) -> Bool:
        """Rows [B, Hq, L] with every key masked: no implementation owes a value there."""
        w = self.workload
        seen = _visible(w, self.mask)
        dead = np.zeros((1, 1, 1), np.bool_) if seen is None else ~seen.any(-1)
        return np.broadcast_to(dead, (w.batch, w.q_heads, w.q_len))

    def truth(self) -> Truth:
        """Float64 results for as many (batch, KV head) pairs and rows as are affordable; the
        first and the last of each are among them, unless one pair is all."""
        w, rng = self.workload, np.random.default_rng(self.seed)
        rows = _sample(rng, w.q_len, _TRUTH_ROWS)
        share = w.kv_len * (w.head_dim + w.v_head_dim)
        count = max(1, _TRUTH_ELEMENTS // share)
        pairs = [divmod(int(i), w.kv_heads) for i in _sample(rng, w.batch * w.kv_heads, count)]
        mask: Array | None = _visible(w, self.mask) if w.mask in ("causal", "bool") else None
        if self.mask is not None and w.mask == "additive":
            mask = decode(self.mask, w.dtype)
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        dead = self.dead_rows()
        outs, masses, live, logit = [], [], [], 0.0
        for b, h in pairs:
            heads = slice(h * w.group, (h + 1) * w.group)
            out, mass, largest = attention(
                decode(self.queries[b, heads][:, rows], w.dtype),
                decode(self.keys[b, h], w.dtype),
                decode(self.values[b, h], w.dtype),
                self.scale,
                None if mask is None else _part(mask, b, heads, rows),
                None if self.sinks is None else decode(self.sinks[heads], w.dtype),
            )
            logit = max(logit, largest)
            outs.append(out)
            masses.append(np.maximum(mass, smallest(w.dtype)))
            live.append(~dead[b, heads][:, rows])
        return Truth(rows, tuple(pairs), tuple(outs), tuple(masses), tuple(live), logit)


def _visible(w: Workload, mask: Array | None) -> Bool | None:
    """Which keys a row may see, broadcastable to [B, Hq, L, N]; None where it is all."""
    if w.mask == "causal":
        return _causal(w.q_len, w.kv_len)[None, None]
    if mask is None:
        return None
    if mask.dtype == np.bool_:
        seen: Bool = np.asarray(mask, np.bool_)
    else:
        seen = decode(mask, w.dtype) > _floor(w.dtype) / 2
    return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)


def sdpa(workload: Workload, fixed: float | None = None) -> Callable[..., mx.array]:
    """MLX's own attention as a Call for a workload: the baseline of every comparison.

    A Call is handed its scale as an array; `fixed` is that number where it is known beforehand,
    as mlx-lm knows it, so that the baseline pays nothing for reading it."""
    causal = workload.mask == "causal"

    def call(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: mx.array | float,
        mask: mx.array | None,
        sinks: mx.array | None,
    ) -> mx.array:
        number = fixed
        if number is None:
            number = scale if isinstance(scale, float) else float(np.array(scale)[0])
        return mx.fast.scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=number,
            mask="causal" if causal else mask,
            sinks=sinks,
        )

    return call


def _part(mask: Array, b: int, heads: slice, rows: npt.NDArray[np.int64]) -> Array:
    """What a mask [B|1, Hq|1, L|1, N] says to some rows of a batch entry and its heads."""
    part = mask[b if mask.shape[0] > 1 else 0]
    part = part[heads] if part.shape[0] > 1 else part
    part = part[:, rows] if part.shape[1] > 1 else part
    return np.asarray(part)


def _causal(q_len: int, kv_len: int) -> Bool:
    seen: Bool = np.arange(kv_len) <= np.arange(kv_len - q_len, kv_len)[:, None]
    return seen


def _floor(dtype: str) -> float:
    """The most negative number of a dtype: what mlx-lm's additive masks hold where they mask."""
    return {"float16": -65504.0, "bfloat16": -3.3895313892515355e38}.get(
        dtype, float(np.finfo(np.float32).min)
    )


def smallest(dtype: str) -> float:
    """Below this a dtype's numbers lose precision, and a chip may flush them to zero: errors are
    measured in units of no less."""
    return 16 * float(np.finfo(np.float16 if dtype == "float16" else np.float32).tiny)


def _sample(rng: np.random.Generator, n: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of range(n), sorted; from two on the first and the last among them."""
    if n <= count:
        return np.arange(n)
    if count == 1:
        return rng.integers(0, n, 1)
    inner = rng.choice(np.arange(1, n - 1), count - 2, replace=False)
    return np.sort(np.concatenate([[0, n - 1], inner]).astype(np.int64))


# Shapes: the edges of a bucket


def _q_range(bucket: Workload) -> tuple[int, int]:
    below = [n for n in Q_LEN_BUCKETS if n < bucket.q_len]
    low = below[-1] + 1 if below else 1
    return min(low, bucket.kv_len), min(bucket.q_len, bucket.kv_len)


def _shapes(rng: np.random.Generator, bucket: Workload) -> list[Workload]:
    """Exact workloads of a bucket: both ends, next to an end, and off every tile."""
    q_low, q_high = _q_range(bucket)
    kv_low, kv_high = bucket.kv_len // 2 + 1, bucket.kv_len
    b_low = bucket.batch // 2 + 1
    odd = int(rng.integers(kv_low, kv_high + 1)) | 1

    def shape(batch: int, q_len: int, kv_len: int) -> Workload:
        kv_len = max(min(kv_len, kv_high), q_len, kv_low)
        return replace(bucket, batch=batch, q_len=q_len, kv_len=kv_len)

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
    buffer = np.empty((batch, heads, _LEAD + length + _TAIL, width), encode(table[:1], dtype).dtype)
    nan = encode(np.array([np.nan], np.float32), dtype)[0]
    buffer[:, :, :_LEAD] = nan
    buffer[:, :, _LEAD + length :] = nan
    stored = encode(table, dtype)
    # Fresh entries for every head while that is cheap, for a long cache windows of one pool.
    pool = stored[rng.integers(0, 256, min(length * width, _POOL), np.uint8)]
    for b in range(batch):
        for h in range(heads):
            rows = buffer[b, h, _LEAD : _LEAD + length].reshape(-1)
            at = 0
            while at < rows.size:  # windows of the pool, each from another place
                start = 0 if pool.size == rows.size else int(rng.integers(pool.size // 2))
                part = pool[start : start + rows.size - at]
                rows[at : at + part.size] = part
                at += part.size
            if pool.size == rows.size:
                pool = stored[rng.integers(0, 256, pool.size, np.uint8)]
    return buffer[:, :, _LEAD : _LEAD + length]


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


def _mask(
    rng: np.random.Generator, w: Workload, form: str, padded: bool, dead: bool = True
) -> Array | None:
    """An array mask in one of three forms, [B, 1, L, N], [L, N] (or [N]) and [B, Hq, L, N].

    padded=False leaves the last sequence without padding even where it is the only one;
    dead=False gives every row a key."""
    if w.mask in ("none", "causal"):
        return None
    if form == "heads" and w.batch * w.q_heads * w.q_len * w.kv_len > _MASK_ELEMENTS:
        form = "padding"
    seen = _causal(w.q_len, w.kv_len)
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
    if not dead:
        seen = seen | (~seen.any(-1, keepdims=True) & (np.arange(w.kv_len) == 0))
    if w.mask == "bool":
        return seen
    bias = rng.standard_normal(seen.shape, np.float32)
    hidden = -np.inf if form == "window" else _floor(w.dtype)
    return encode(np.where(seen, bias, np.float32(hidden)), w.dtype)


@dataclass(frozen=True)
class _Plan:
    """One case: kind, index of its shape, factor on 1/sqrt(D) (models scale by other numbers
    too), and the form of its mask where it has one."""

    kind: str
    shape: int
    factor: float
    form: str
    padded: bool = True


_PLANS = (
    _Plan("needles", 0, 1.0, "padding", padded=False),
    _Plan("peaked", 0, 0.75, "window"),
    _Plan("needles", 1, 1.25, "window"),
    _Plan("large", 1, 1.0, "heads"),
    _Plan("flat", 2, 1.5, "padding"),
    _Plan("needles", 2, 0.75, "heads"),
    _Plan("needles", 3, 1.0, "padding"),
    _Plan("peaked", 3, 1.25, "heads"),
)


def cases(bucket: Workload, seed: int) -> Iterator[Case]:
    """The cases of a bucket, made one at a time; every one differs from the others in kind,
    shape, scale or form of the mask."""
    shapes = _shapes(np.random.default_rng([seed, 0]), bucket)
    for turn, plan in enumerate(_PLANS):
        yield _case(plan, shapes[plan.shape], seed, turn)


def mask(workload: Workload, seed: int) -> mx.array | None:
    """An array mask for a workload as its most common caller passes it: left padding of a batch,
    or a bias of its own for every head where the mask is additive, and no row wholly masked.
    None where there is none."""
    form = "heads" if workload.mask == "additive" else "padding"
    stored = _mask(np.random.default_rng([seed, 99]), workload, form, False, False)
    return None if stored is None else _upload(stored, workload.dtype)


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
    content = KINDS[plan.kind](rng, w, scale, _visible(w, masking))
    return Case(
        name=name,
        workload=w,
        scale=scale,
        queries=encode(content.queries, w.dtype),
        keys=content.keys,
        values=content.values,
        mask=masking,
        sinks=encode(content.sinks, w.dtype) if w.sinks else None,
        seed=seed,
    )

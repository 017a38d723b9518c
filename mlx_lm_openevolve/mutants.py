"""Mutants: known-wrong attention that the gate must reject before it may accept anything.

Each is a plain NumPy function over float32 arrays, a few lines away from `Attention.out`, the
right answer. A mutant is left out only by its own predicate over the workload (a wrong batch
stride cannot show at batch 1), never because it survived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .workload import Workload

__all__ = ["MUTANTS", "Attention", "Mutant", "applicable", "correct", "proxy"]

Array = npt.NDArray[Any]
Rule = Callable[[Workload], bool]


def proxy(bucket: Workload) -> Workload:
    """A small bucket that asks the same question: one or two sequences and KV heads, as many
    query heads each (to four in prefill), the same q_len range, dtype, mask and head dims."""
    kv_heads = min(bucket.kv_heads, 2)
    group = bucket.group if bucket.q_len <= 8 else min(bucket.group, 4)
    return replace(
        bucket,
        batch=min(bucket.batch, 2),
        kv_heads=kv_heads,
        q_heads=kv_heads * group,
        kv_len=min(bucket.kv_len, 128 if bucket.q_len <= 32 else 64),
    )


@dataclass(frozen=True, eq=False)
class Attention:
    """One call as float32 arrays: q [B, Hq, L, D], k [B, Hq, N, D] and v [B, Hq, N, Dv] already
    repeated for the query heads, mask [B, Hq, L, N] (bool or additive, causal made explicit) or
    None, sinks [Hq] or None. `kv_heads` keys are distinct; `state` outlives a call."""

    q: Array
    k: Array
    v: Array
    scale: float
    mask: Array | None
    sinks: Array | None
    workload: Workload
    state: dict[str, Array] = field(default_factory=dict)

    def scores(self) -> Array:
        """Masked logits [B, Hq, L, N]."""
        scores = self.q @ self.k.swapaxes(-1, -2) * np.float32(self.scale)
        if self.mask is None:
            return scores
        if self.mask.dtype == np.bool_:
            return np.where(self.mask, scores, np.float32(-np.inf))
        return scores + self.mask

    def parts(self, scores: Array) -> tuple[Array, Array, Array]:
        """(maximum, sum of exponentials, unnormalised output) of some keys' scores."""
        top = scores.max(-1, keepdims=True)
        if self.sinks is not None:
            top = np.maximum(top, self.sinks[:, None, None])
        top = np.maximum(top, np.finfo(np.float32).min)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        if self.sinks is not None:
            total = total + np.exp(self.sinks[:, None, None] - top)
        return top, total, weights @ self.v

    def out(self) -> Array:
        """Attention as it should be, [B, Hq, L, Dv]; zeros where every key is masked."""
        _, total, out = self.parts(self.scores())
        return _divide(out, total)

    def kept(self, keys: Array) -> Attention:
        """With the keys at these positions alone, in this order."""
        mask = None if self.mask is None else self.mask[..., keys]
        return replace(self, k=self.k[:, :, keys], v=self.v[:, :, keys], mask=mask)

    def halves(self) -> tuple[Attention, Attention]:
        """The first and the second half of the keys; neither knows the sinks."""
        keys = np.arange(self.k.shape[2])
        plain = replace(self, sinks=None)
        return plain.kept(keys[: len(keys) // 2]), plain.kept(keys[len(keys) // 2 :])


def _divide(out: Array, total: Array) -> Array:
    """out / total, and zero where no key had any weight."""
    return np.asarray(out / np.where(total == 0, np.float32(1), total))


def _float(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32))


def _read(
    w: Workload, state: dict[str, Array], args: tuple[Any, ...]
) -> tuple[Attention, mx.Dtype]:
    queries, keys, values, scale, mask, sinks = args
    q = _float(queries)
    n = keys.shape[2]
    shape = (*q.shape[:3], n)
    full: Array | None = None
    if w.mask == "causal":
        full = np.broadcast_to(np.arange(n) <= np.arange(n - q.shape[2], n)[:, None], shape)
    elif mask is not None:
        raw = np.array(mask) if mask.dtype == mx.bool_ else _float(mask)
        full = np.broadcast_to(raw, shape)
    attention = Attention(
        q=q,
        k=_float(keys).repeat(w.group, 1),
        v=_float(values).repeat(w.group, 1),
        scale=float(scale.item()),
        mask=full,
        sinks=None if sinks is None else _float(sinks),
        workload=w,
        state=state,
    )
    return attention, queries.dtype


@dataclass(frozen=True)
class Mutant:
    """A wrong implementation: its name, what it breaks, where that can show, and how."""

    name: str
    breaks: str
    applies: Rule
    run: Callable[[Attention], Array]

    def build(self, workload: Workload) -> Callable[..., mx.array]:
        """The mutant as a Call for an exact workload."""
        state: dict[str, Array] = {}

        def call(*args: Any) -> mx.array:
            attention, dtype = _read(workload, state, args)
            with np.errstate(all="ignore"):
                out = np.ascontiguousarray(self.run(attention), np.float32)
            return mx.array(out).astype(dtype)

        return call


MUTANTS: list[Mutant] = []
correct = Mutant("correct", "nothing: the unchanged implementation", lambda w: True, Attention.out)


def applicable(workload: Workload) -> list[Mutant]:
    """The mutants that can show on a workload."""
    return [mutant for mutant in MUTANTS if mutant.applies(workload)]


def _always(w: Workload) -> bool:
    return True


def _batched(w: Workload) -> bool:
    return w.batch > 1


def _many_kv_heads(w: Workload) -> bool:
    return w.kv_heads > 1


def _many_rows(w: Workload) -> bool:
    return w.q_len > 1


def _causal(w: Workload) -> bool:
    return w.mask == "causal"


def _masked(w: Workload) -> bool:
    return w.mask in ("bool", "additive")


def _additive(w: Workload) -> bool:
    return w.mask == "additive"


def _sinks(w: Workload) -> bool:
    return w.sinks


def mutant(breaks: str, applies: Rule = _always) -> Callable[..., Callable[[Attention], Array]]:
    """Declare a mutant; its name is the function's."""

    def declare(run: Callable[[Attention], Array]) -> Callable[[Attention], Array]:
        MUTANTS.append(Mutant(run.__name__.strip("_").replace("_", "-"), breaks, applies, run))
        return run

    return declare


# Keys lost, invented or misplaced


def _drop(breaks: str, name: str, lost: Callable[[Array, int], Array], when: Rule) -> None:
    def run(x: Attention) -> Array:
        keys = np.arange(x.k.shape[2])
        return x.kept(keys[~lost(keys, len(keys))]).out()

    MUTANTS.append(Mutant(name, breaks, when, run))


def _long(n: int) -> Rule:
    return lambda w: w.kv_len >= n


_drop("the key loop ends one early", "last-key-lost", lambda k, n: k == n - 1, _long(4))
_drop("the key loop starts at one", "first-key-lost", lambda k, n: k == 0, _long(4))
_drop("the keys after the last whole tile", "tail-lost", lambda k, n: k >= n - n % 8, _long(32))
_drop("the last key of every tile of 8", "tile-edge-lost", lambda k, n: k % 8 == 7, _long(16))
_drop("the last lane's share", "lane-lost", lambda k, n: k % 32 == 31, _long(64))
_drop("one simdgroup's share", "simdgroup-lost", lambda k, n: k // 8 % 4 == 3, _long(64))
_drop("the second split's keys", "split-lost", lambda k, n: k >= n // 2, _long(4))
_drop("all keys but every second", "stride-two", lambda k, n: k % 2 == 1, _long(4))


@mutant("query length used as key length", lambda w: w.kv_len > 2 * w.q_len)
def query_length_as_key_length(x: Attention) -> Array:
    return x.kept(np.arange(x.q.shape[2])).out()


@mutant("the last tile is padded with zeros that count as keys", lambda w: w.mask == "none")
def padding_counted(x: Attention) -> Array:
    pad = ((0, 0), (0, 0), (0, 3), (0, 0))
    return replace(x, k=np.pad(x.k, pad), v=np.pad(x.v, pad)).out()


@mutant("the last key is counted twice")
def last_key_twice(x: Attention) -> Array:
    keys = np.arange(x.k.shape[2])
    return x.kept(np.append(keys, keys[-1])).out()


@mutant("V is read one row late")
def values_shifted(x: Attention) -> Array:
    return replace(x, v=np.roll(x.v, 1, axis=2)).out()


@mutant("K is read one row late")
def keys_shifted(x: Attention) -> Array:
    return replace(x, k=np.roll(x.k, 1, axis=2)).out()


# Heads, batch and queries


@mutant("KV head h % kv_heads in place of h // group", lambda w: w.kv_heads > 1 and w.group > 1)
def wrong_gqa_map(x: Attention) -> Array:
    heads = np.arange(x.workload.q_heads) % x.workload.kv_heads * x.workload.group
    return replace(x, k=x.k[:, heads], v=x.v[:, heads]).out()


@mutant("every query head reads KV head 0", _many_kv_heads)
def first_kv_head_for_all(x: Attention) -> Array:
    return replace(x, k=x.k[:, :1], v=x.v[:, :1]).out()


@mutant("V of the next KV head", _many_kv_heads)
def values_of_next_head(x: Attention) -> Array:
    return replace(x, v=np.roll(x.v, x.workload.group, axis=1)).out()


@mutant("the query of the neighbouring head", lambda w: w.q_heads > 1)
def query_of_next_head(x: Attention) -> Array:
    return replace(x, q=np.roll(x.q, 1, axis=1)).out()


@mutant("results are stored under the neighbouring head", lambda w: w.q_heads > 1)
def output_of_next_head(x: Attention) -> Array:
    return np.roll(x.out(), 1, axis=1)


@mutant("K's batch stride is 0", _batched)
def key_batch_stride_zero(x: Attention) -> Array:
    return replace(x, k=np.broadcast_to(x.k[:1], x.k.shape)).out()


@mutant("V's batch stride is 0", _batched)
def value_batch_stride_zero(x: Attention) -> Array:
    return replace(x, v=np.broadcast_to(x.v[:1], x.v.shape)).out()


@mutant("the queries' batch stride is 0", _batched)
def query_batch_stride_zero(x: Attention) -> Array:
    return replace(x, q=np.broadcast_to(x.q[:1], x.q.shape)).out()


@mutant("every row uses the first query", _many_rows)
def query_row_stride_zero(x: Attention) -> Array:
    return replace(x, q=np.broadcast_to(x.q[:, :, :1], x.q.shape)).out()


@mutant("rows are stored in the layout [B, L, H, D]", lambda w: w.q_len > 1 and w.q_heads > 1)
def rows_and_heads_swapped(x: Attention) -> Array:
    out = x.out()
    return out.swapaxes(1, 2).reshape(out.shape)


@mutant("the caches are read as contiguous, without their strides", lambda w: w.kv_heads > 1)
def cache_read_as_contiguous(x: Attention) -> Array:
    # Each head starts where a buffer without spare rows would have put it.
    shift = 8 * (np.arange(x.workload.q_heads) // x.workload.group)
    k, v = x.k.copy(), x.v.copy()
    for h, rows in enumerate(shift):
        k[:, h], v[:, h] = np.roll(k[:, h], rows, axis=1), np.roll(v[:, h], rows, axis=1)
        k[:, h, :rows], v[:, h, :rows] = np.nan, np.nan
    return replace(x, k=k, v=v).out()


# Causal


def _shift_causal(x: Attention, by: int) -> Array:
    rows, keys = x.q.shape[2], x.k.shape[2]
    seen = np.arange(keys) <= np.arange(keys - rows, keys)[:, None] + by
    return replace(x, mask=np.broadcast_to(seen, (*x.q.shape[:3], keys))).out()


@mutant("a row sees one key of the future", _causal)
def causal_one_late(x: Attention) -> Array:
    return _shift_causal(x, 1)


@mutant("a row does not see its own key", _causal)
def causal_one_early(x: Attention) -> Array:
    return _shift_causal(x, -1)


@mutant("causal as if keys and queries began together", lambda w: _causal(w) and w.kv_len > w.q_len)
def causal_from_the_top(x: Attention) -> Array:
    return _shift_causal(x, x.q.shape[2] - x.k.shape[2])


@mutant("the causal mask is ignored", _causal)
def causal_ignored(x: Attention) -> Array:
    return replace(x, mask=None).out()


@mutant("the causal mask hides the past", _causal)
def causal_reversed(x: Attention) -> Array:
    assert x.mask is not None
    return replace(x, mask=x.mask[..., ::-1]).out()


# Array masks


def _remask(x: Attention, change: Callable[[Array], Array]) -> Array:
    assert x.mask is not None
    return replace(x, mask=np.broadcast_to(change(x.mask), x.mask.shape)).out()


@mutant("the mask is ignored", _masked)
def mask_ignored(x: Attention) -> Array:
    return replace(x, mask=None).out()


@mutant("the mask's meaning is reversed", _masked)
def mask_inverted(x: Attention) -> Array:
    return _remask(x, lambda m: ~m if m.dtype == np.bool_ else -np.maximum(m, -1e4))


@mutant("the mask is read one key late", _masked)
def mask_shifted(x: Attention) -> Array:
    return _remask(x, lambda m: np.roll(m, 1, axis=-1))


@mutant("the mask of the first key counts for all", _masked)
def mask_key_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[..., :1])


@mutant("the mask of the first row counts for all", lambda w: _masked(w) and w.q_len > 1)
def mask_row_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:, :, :1])


@mutant("the mask of the first head counts for all", lambda w: _masked(w) and w.q_heads > 1)
def mask_head_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:, :1])


@mutant("the mask of the first sequence counts for all", lambda w: _masked(w) and w.batch > 1)
def mask_batch_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:1])


@mutant("an additive mask only hides, its finite values are lost", _additive)
def bias_lost(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, np.float32(0)))


@mutant("an additive mask is added twice", _additive)
def bias_twice(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, m + m))


@mutant("an additive mask is added before the scale", _additive)
def bias_scaled(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, m * np.float32(x.scale)))


@mutant("an additive mask is subtracted", _additive)
def bias_subtracted(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, -m))


# Scale


@mutant("the scale is ignored")
def scale_ignored(x: Attention) -> Array:
    return replace(x, scale=1.0).out()


@mutant("the scale is applied twice")
def scale_twice(x: Attention) -> Array:
    return replace(x, scale=x.scale**2).out()


@mutant("1/sqrt(D) is written into the source")
def scale_assumed(x: Attention) -> Array:
    return replace(x, scale=x.q.shape[-1] ** -0.5).out()


@mutant("exp2 without the factor log2(e)")
def base_two(x: Attention) -> Array:
    factor = np.float32(np.log(2))
    sinks = None if x.sinks is None else x.sinks * factor
    mask = x.mask if x.mask is None or x.mask.dtype == np.bool_ else x.mask * factor
    return replace(x, scale=x.scale * float(factor), mask=mask, sinks=sinks).out()


@mutant("only the first half of the head dimension enters the logits")
def half_head_dim(x: Attention) -> Array:
    half = x.q.shape[-1] // 2
    return replace(x, q=x.q[..., :half], k=x.k[..., :half]).out()


# Softmax


@mutant("exponentials without the maximum")
def no_maximum(x: Attention) -> Array:
    weights = np.exp(x.scores())
    total = weights.sum(-1, keepdims=True)
    if x.sinks is not None:
        total = total + np.exp(x.sinks[:, None, None])
    return np.asarray((weights @ x.v) / total)


@mutant("the sum of exponentials is not divided out")
def unnormalised(x: Attention) -> Array:
    return x.parts(x.scores())[2]


@mutant("divided by the number of keys")
def divided_by_length(x: Attention) -> Array:
    return x.parts(x.scores())[2] / np.float32(x.k.shape[2])


@mutant("the heaviest key takes all")
def hard_maximum(x: Attention) -> Array:
    best = x.scores().argmax(-1)
    out: Array = np.take_along_axis(x.v, best[..., None], axis=2)
    return out


@mutant("splits are averaged, each with a softmax of its own", _long(4))
def splits_averaged(x: Attention) -> Array:
    first, second = x.halves()
    return (first.out() + second.out()) / 2


@mutant("splits are combined without rescaling to one maximum", _long(4))
def splits_not_rescaled(x: Attention) -> Array:
    (_, s1, o1), (_, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    return _divide(o1 + o2, s1 + s2)


@mutant("the running sum is rescaled, the running output is not", _long(4))
def output_not_rescaled(x: Attention) -> Array:
    (m1, s1, o1), (m2, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    top = np.maximum(m1, m2)
    total = s1 * np.exp(m1 - top) + s2 * np.exp(m2 - top)
    return _divide(o1 + o2 * np.exp(m2 - top), total)


@mutant("the running output is rescaled, the running sum is not", _long(4))
def sum_not_rescaled(x: Attention) -> Array:
    (m1, s1, o1), (m2, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    top = np.maximum(m1, m2)
    total = s1 + s2
    out = o1 * np.exp(m1 - top) + o2 * np.exp(m2 - top)
    return _divide(out, total)


@mutant("values are summed in half precision", lambda w: w.dtype == "float16")
def half_precision_sum(x: Attention) -> Array:
    _, total, out = x.parts(x.scores())
    return _divide(out.astype(np.float16).astype(np.float32), total)


@mutant("float32 logits are rounded to half precision", lambda w: w.dtype == "float32")
def half_precision_logits(x: Attention) -> Array:
    scores = x.scores()
    rounded = np.where(scores < -1e4, scores, scores.astype(np.float16).astype(np.float32))
    _, total, out = x.parts(rounded)
    return _divide(out, total)


@mutant("float32 values are rounded to half precision", lambda w: w.dtype == "float32")
def half_precision_values(x: Attention) -> Array:
    return replace(x, v=x.v.astype(np.float16).astype(np.float32)).out()


# Sinks


@mutant("sinks are ignored", _sinks)
def sinks_ignored(x: Attention) -> Array:
    return replace(x, sinks=None).out()


@mutant("sinks are counted twice", _sinks)
def sinks_twice(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=x.sinks + np.float32(np.log(2))).out()


@mutant("sinks are multiplied by the scale", _sinks)
def sinks_scaled(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=x.sinks * np.float32(x.scale)).out()


@mutant("the first head's sink counts for all", lambda w: w.sinks and w.q_heads > 1)
def sink_of_first_head(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=np.broadcast_to(x.sinks[:1], x.sinks.shape)).out()


@mutant("the sink lends its weight to the first value", _sinks)
def sink_with_value(x: Attention) -> Array:
    assert x.sinks is not None
    top, total, out = x.parts(x.scores())
    return _divide(out + np.exp(x.sinks[:, None, None] - top) * x.v[:, :, :1], total)


# Outputs


@mutant("the mean of V")
def mean_of_values(x: Attention) -> Array:
    return np.broadcast_to(x.v.mean(2, keepdims=True), x.out().shape)


@mutant("the first row of V")
def first_value(x: Attention) -> Array:
    return np.broadcast_to(x.v[:, :, :1], x.out().shape)


@mutant("the last row of V")
def last_value(x: Attention) -> Array:
    return np.broadcast_to(x.v[:, :, -1:], x.out().shape)


@mutant("zeros")
def zeros(x: Attention) -> Array:
    return np.zeros_like(x.out())


@mutant("a copy of the queries", lambda w: w.head_dim == w.v_head_dim)
def copy_of_queries(x: Attention) -> Array:
    return x.q


@mutant("the result of the call before")
def replayed_output(x: Attention) -> Array:
    out = x.out()
    last = x.state.get("out", out)
    x.state["out"] = out
    return last if last.shape == out.shape else out


@mutant("the first result, for every later call")
def memoised_output(x: Attention) -> Array:
    return x.state.setdefault("out", x.out())


def _partly(x: Attention, part: tuple[Any, ...], value: float) -> Array:
    out = x.out().copy()
    out[part] = value
    return out


@mutant("the second half of the output is not written")
def half_not_written(x: Attention) -> Array:
    half = x.v.shape[-1] // 2
    return _partly(x, (..., slice(half, None)), np.nan)


@mutant("the second half of the output stays zero")
def half_zero(x: Attention) -> Array:
    half = x.v.shape[-1] // 2
    return _partly(x, (..., slice(half, None)), 0)


@mutant("the last element of the output stays zero")
def last_element_zero(x: Attention) -> Array:
    return _partly(x, (..., -1), 0)


@mutant("the last head's output stays zero", lambda w: w.q_heads > 1)
def last_head_zero(x: Attention) -> Array:
    return _partly(x, (slice(None), -1), 0)


@mutant("the last row's output stays zero", _many_rows)
def last_row_zero(x: Attention) -> Array:
    return _partly(x, (slice(None), slice(None), -1), 0)


@mutant("the last sequence's output stays zero", _batched)
def last_sequence_zero(x: Attention) -> Array:
    return _partly(x, (-1,), 0)


@mutant("one element differs between two runs of the same call")
def unstable_output(x: Attention) -> Array:
    runs = x.state["runs"] = x.state.get("runs", np.zeros(1)) + 1
    out = x.out().copy()
    out[..., 0] *= np.float32(1 + 0.01 * (runs[0] % 3))
    return out


@mutant("NaN")
def not_a_number(x: Attention) -> Array:
    return np.full_like(x.out(), np.nan)


@mutant("a fully masked row divides by zero", lambda w: w.mask == "bool" and w.q_heads > 1)
def masked_row_not_a_number(x: Attention) -> Array:
    assert x.mask is not None
    return np.where(x.mask.any(-1, keepdims=True), x.out(), np.float32(np.nan))

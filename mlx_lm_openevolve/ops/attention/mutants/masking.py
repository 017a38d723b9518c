"""Mutants of causal, bool and additive masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..workload import Workload
from .base import Array, Attention, additive, causal, masked, mutant


def _shift_causal(x: Attention, by: int) -> Array:
    rows, keys = x.q.shape[2], x.k.shape[2]
    seen = np.arange(keys) <= np.arange(keys - rows, keys)[:, None] + by
    return replace(x, mask=np.broadcast_to(seen, (*x.q.shape[:3], keys))).out()


@mutant("a row sees one key of the future", causal)
def causal_one_late(x: Attention) -> Array:
    return _shift_causal(x, 1)


@mutant("a row does not see its own key", causal)
def causal_one_early(x: Attention) -> Array:
    return _shift_causal(x, -1)


@mutant("causal as if keys and queries began together", lambda w: causal(w) and w.kv_len > w.q_len)
def causal_from_the_top(x: Attention) -> Array:
    return _shift_causal(x, x.q.shape[2] - x.k.shape[2])


@mutant("the causal mask is ignored", causal)
def causal_ignored(x: Attention) -> Array:
    return replace(x, mask=None).out()


@mutant("the causal mask hides the past", causal)
def causal_reversed(x: Attention) -> Array:
    assert x.mask is not None
    return replace(x, mask=x.mask[..., ::-1]).out()


# Array masks


def _remask(x: Attention, change: Callable[[Array], Array]) -> Array:
    assert x.mask is not None
    return replace(x, mask=np.broadcast_to(change(x.mask), x.mask.shape)).out()


@mutant("the mask is ignored", masked)
def mask_ignored(x: Attention) -> Array:
    return replace(x, mask=None).out()


@mutant("the mask's meaning is reversed", masked)
def mask_inverted(x: Attention) -> Array:
    return _remask(x, lambda m: ~m if m.dtype == np.bool_ else -np.maximum(m, -1e4))


@mutant("the mask is read one key late", masked)
def mask_shifted(x: Attention) -> Array:
    return _remask(x, lambda m: np.roll(m, 1, axis=-1))


@mutant("the mask of the first key counts for all", masked)
def mask_key_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[..., :1])


@mutant("the mask of the first row counts for all", lambda w: masked(w) and w.q_len > 1)
def mask_row_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:, :, :1])


@mutant("the mask of the first head counts for all", lambda w: masked(w) and w.q_heads > 1)
def mask_head_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:, :1])


@mutant("the mask of the first sequence counts for all", lambda w: masked(w) and w.batch > 1)
def mask_batch_stride_zero(x: Attention) -> Array:
    return _remask(x, lambda m: m[:1])


@mutant("an additive mask only hides, its finite values are lost", additive)
def bias_lost(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, np.float32(0)))


@mutant("an additive mask is added twice", additive)
def bias_twice(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, m + m))


@mutant("an additive mask is added before the scale", additive)
def bias_scaled(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, m * np.float32(x.scale)))


@mutant("an additive mask is subtracted", additive)
def bias_subtracted(x: Attention) -> Array:
    return _remask(x, lambda m: np.where(m < -1e4, m, -m))


# Rows with every key masked


def _hidden(x: Attention, keys: Callable[[Array], Array], more: int) -> Array:
    """Rows that see no key are the sum of some keys' values over their number and `more`."""
    assert x.mask is not None
    if x.mask.dtype == np.bool_:
        hidden, used = ~x.mask.any(-1, keepdims=True), np.ones_like(x.mask)
    else:
        hidden, used = x.mask.max(-1, keepdims=True) < -3e4, keys(x.mask)
    shared = used.astype(np.float32)
    mean = shared @ x.v / (shared.sum(-1, keepdims=True) + more)
    return np.where(hidden, mean, x.out())


def _hides_rows(w: Workload) -> bool:
    """A masked row is among those of the first case, and no sink takes its weight."""
    return masked(w) and w.q_len > 1 and not w.sinks


@mutant("a row that sees no key counts one more", _hides_rows)
def hidden_row_counts_one_more(x: Attention) -> Array:
    return _hidden(x, lambda m: np.equal(m, m.max(-1, keepdims=True)), 1)


@mutant("of a hidden row infinities count", lambda w: _hides_rows(w) and additive(w))
def hidden_row_sees_infinities(x: Attention) -> Array:
    return _hidden(x, lambda m: np.ones_like(m, np.bool_), 0)

"""Mutants that are wrong at some lengths, scales, logits or biases alone.

One key tells nothing: its softmax is 1, whatever its logit. None of these is tried there. Nor are
wrong batches between the ends, since proxies have two sequences: tests/support/wrong_kernels.py
has kernels that err there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..workload import Workload
from .base import Array, Attention, additive, divide, long, mutant


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def _without_last(x: Attention, when: Callable[[int], bool], count: int = 1) -> Array:
    """The last keys are lost at some lengths."""
    n = x.k.shape[2]
    return x.kept(np.arange(n - count)).out() if when(n) else x.out()


@mutant("the last key, at an odd length", long(16))
def odd_length(x: Attention) -> Array:
    return _without_last(x, lambda n: n % 2 == 1)


@mutant("the last key, at an even length off the power of two", long(16))
def even_length(x: Attention) -> Array:
    return _without_last(x, lambda n: n % 2 == 0 and not _power_of_two(n))


@mutant("the last four keys, at a multiple of 4 off the power of two", long(16))
def length_of_whole_fours(x: Attention) -> Array:
    return _without_last(x, lambda n: n % 4 == 0 and not _power_of_two(n), 4)


@mutant("the last row, at an odd number of rows", lambda w: w.q_len > 1 and w.kv_len >= 16)
def odd_rows(x: Attention) -> Array:
    out = x.out().copy()
    if out.shape[2] % 2 and out.shape[2] > 1:
        out[:, :, -1] = out[:, :, -2]
    return out


# Ranges


@mutant("a scale above 1 is 1", long(4))
def scale_clamped(x: Attention) -> Array:
    return replace(x, scale=min(x.scale, 1.0)).out()


@mutant("a scale below 0.01 is 0.01", long(4))
def scale_raised(x: Attention) -> Array:
    return replace(x, scale=0.01 if abs(x.scale) < 0.01 else x.scale).out()


@mutant("a scale without its sign", long(4))
def scale_unsigned(x: Attention) -> Array:
    return replace(x, scale=abs(x.scale)).out()


def _rescored(x: Attention, change: Callable[[Array], Array]) -> Array:
    plain = replace(x, mask=None).scores()
    scores = change(plain)
    if x.mask is not None:
        hidden = np.float32(-np.inf)
        scores = np.where(x.mask, scores, hidden) if x.mask.dtype == np.bool_ else scores + x.mask
    _, total, out = x.parts(scores)
    return divide(out, total)


# Of fewer than 16 keys a mask may leave one alone in every question of large logits.
@mutant("logits are capped softly at 50", long(16))
def logits_capped(x: Attention) -> Array:
    return _rescored(x, lambda s: 50 * np.tanh(s / 50))


@mutant("logits above 300 are 300", long(16))
def logits_clamped(x: Attention) -> Array:
    return _rescored(x, lambda s: np.minimum(s, np.float32(300)))


@mutant("logits below -100 are -100", lambda w: w.kv_len >= 4 and w.q_heads > 1)
def negative_logits_clamped(x: Attention) -> Array:
    return _rescored(x, lambda s: np.maximum(s, np.float32(-100)))


@mutant("biases below -20 are -20, unless they hide", lambda w: additive(w) and not w.sinks)
def bias_clamped_below(x: Attention) -> Array:
    assert x.mask is not None
    m = x.mask
    return replace(x, mask=np.where(m > -5000, np.maximum(m, np.float32(-20)), m)).out()


@mutant("biases above 10 are 10", additive)
def bias_clamped_above(x: Attention) -> Array:
    assert x.mask is not None
    return replace(x, mask=np.minimum(x.mask, np.float32(10))).out()


# Light keys


def _spread_out(w: Workload) -> bool:
    """Keys that are not the values: a heavy one can have a value of zero."""
    return w.kv_len >= 16 and not w.latent


def _reweighted(x: Attention, change: Callable[[Array], Array]) -> Array:
    scores = x.scores()
    top, _, _ = x.parts(scores)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if x.sinks is not None:
        total = total + np.exp(x.sinks[:, None, None] - top)
    return divide(change(weights) @ x.v, total)


@mutant("keys of less than a thousandth of the heaviest's weight are skipped", _spread_out)
def light_keys_skipped(x: Attention) -> Array:
    return _reweighted(x, lambda p: np.where(p < 1e-3, np.float32(0), p))


@mutant("weights are kept in 256ths", _spread_out)
def weights_in_8_bits(x: Attention) -> Array:
    return _reweighted(x, lambda p: np.floor(p * 256) / np.float32(256))

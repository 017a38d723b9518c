"""Mutants of the scale, the softmax and the sinks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .base import Array, Attention, divide, long, mutant, with_sinks


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


@mutant("splits are averaged, each with a softmax of its own", long(4))
def splits_averaged(x: Attention) -> Array:
    first, second = x.halves()
    return (first.out() + second.out()) / 2


@mutant("splits are combined without rescaling to one maximum", long(4))
def splits_not_rescaled(x: Attention) -> Array:
    (_, s1, o1), (_, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    return divide(o1 + o2, s1 + s2)


@mutant("the running sum is rescaled, the running output is not", long(4))
def output_not_rescaled(x: Attention) -> Array:
    (m1, s1, o1), (m2, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    top = np.maximum(m1, m2)
    total = s1 * np.exp(m1 - top) + s2 * np.exp(m2 - top)
    return divide(o1 + o2 * np.exp(m2 - top), total)


@mutant("the running output is rescaled, the running sum is not", long(4))
def sum_not_rescaled(x: Attention) -> Array:
    (m1, s1, o1), (m2, s2, o2) = (half.parts(half.scores()) for half in x.halves())
    top = np.maximum(m1, m2)
    total = s1 + s2
    out = o1 * np.exp(m1 - top) + o2 * np.exp(m2 - top)
    return divide(out, total)


@mutant("values are summed in half precision", lambda w: w.dtype == "float16")
def half_precision_sum(x: Attention) -> Array:
    _, total, out = x.parts(x.scores())
    return divide(out.astype(np.float16).astype(np.float32), total)


@mutant("float32 logits are rounded to half precision", lambda w: w.dtype == "float32")
def half_precision_logits(x: Attention) -> Array:
    scores = x.scores()
    rounded = np.where(scores < -1e4, scores, scores.astype(np.float16).astype(np.float32))
    _, total, out = x.parts(rounded)
    return divide(out, total)


@mutant("float32 values are rounded to half precision", lambda w: w.dtype == "float32")
def half_precision_values(x: Attention) -> Array:
    return replace(x, v=x.v.astype(np.float16).astype(np.float32)).out()


# Sinks


@mutant("sinks are ignored", with_sinks)
def sinks_ignored(x: Attention) -> Array:
    return replace(x, sinks=None).out()


@mutant("sinks are counted twice", with_sinks)
def sinks_twice(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=x.sinks + np.float32(np.log(2))).out()


@mutant("sinks are multiplied by the scale", with_sinks)
def sinks_scaled(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=x.sinks * np.float32(x.scale)).out()


@mutant("the first head's sink counts for all", lambda w: w.sinks and w.q_heads > 1)
def sink_of_first_head(x: Attention) -> Array:
    assert x.sinks is not None
    return replace(x, sinks=np.broadcast_to(x.sinks[:1], x.sinks.shape)).out()


@mutant("the sink lends its weight to the first value", with_sinks)
def sink_with_value(x: Attention) -> Array:
    assert x.sinks is not None
    top, total, out = x.parts(x.scores())
    return divide(out + np.exp(x.sinks[:, None, None] - top) * x.v[:, :, :1], total)

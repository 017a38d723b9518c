"""Mutants of what is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Array, Attention, batched, many_rows, mutant


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


@mutant("the last row's output stays zero", many_rows)
def last_row_zero(x: Attention) -> Array:
    return _partly(x, (slice(None), slice(None), -1), 0)


@mutant("the last sequence's output stays zero", batched)
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

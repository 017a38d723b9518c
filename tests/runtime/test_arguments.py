"""Arguments of every kind: stock's result, or stock's exception with its words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from samples import shipped_in_metal, store_correct
from serving import BUCKETS, attention, close, enable, hits

from mlx_lm_openevolve.ops.attention import call as attention_call

MASKS = ("none", "bool", "additive")


@pytest.fixture(autouse=True)
def everything_is_proven(home: Path) -> None:
    """Every decode call that a kernel could serve is served."""
    for bits, group in ((0, 0), (8, 32)):
        some = [replace(b, kv_bits=bits, kv_group=group, mask=m) for b in BUCKETS for m in MASKS]
        kernel = next(k for k in shipped_in_metal() if all(k.applies_to(w) for w in some))
        store_correct(home, kernel, some)


def quantized(**changes: Any) -> dict[str, Any]:
    """The call of `attention` over mlx-lm's quantised cache."""
    plain = attention()
    cache = QuantizedKVCache(group_size=32, bits=8)
    keys, values = cache.update_and_fetch(plain["keys"], plain["values"])
    return plain | {"keys": keys, "values": values, "cache": cache} | changes


# mlx-lm's quantised attention rounds its scores to bfloat16, a kernel does not.
LIMIT = {attention: 0.01, quantized: 0.03}


def outcome(make: Callable[..., dict[str, Any]], **changes: Any) -> Any:
    arguments = make(**changes)
    try:
        out = base.scaled_dot_product_attention(**arguments)
        mx.eval(out)
    except Exception as error:
        return type(error), str(error)
    return out


def same(make: Callable[..., dict[str, Any]], made: Callable[[], dict[str, Any]]) -> int:
    """Stock and patched agree; the number of calls that a kernel served, of two."""
    want = outcome(make, **made())
    enable()
    for _ in range(2):
        got = outcome(make, **made())
        if isinstance(want, tuple):
            assert got == want
        else:
            assert got.dtype == want.dtype
            nan = mx.isnan(want).all().item()
            assert mx.isnan(got).all().item() if nan else close(got, want, LIMIT[make])
    return hits()


SCALES: dict[str, tuple[Callable[[], Any], bool]] = {
    "a number": (lambda: 0.125, True),
    "an int": (lambda: 1, True),
    "a bool": (lambda: True, True),
    "np.float64": (lambda: np.float64(0.125), True),
    "np.float32": (lambda: np.float32(0.125), False),
    "np.int32": (lambda: np.int32(1), False),
    "an array": (lambda: mx.array(0.125), False),
    "an array of one": (lambda: mx.array([0.125]), False),
    "np.array": (lambda: np.array(0.125), False),
    "np.array of one": (lambda: np.array([0.125]), False),
    "a fraction": (lambda: Fraction(1, 8), False),
    "text": (lambda: "0.125", False),
    "none": (lambda: None, False),
    "a complex number": (lambda: 1 + 0j, False),
    "a list": (lambda: [0.125], False),
    "not a number": (lambda: float("nan"), False),
    "infinity": (lambda: float("inf"), False),
    "an int beyond all floats": (lambda: 10**400, False),
}


@pytest.mark.parametrize("make", [attention, quantized])
@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_of_any_type(make: Callable[..., dict[str, Any]], scale: str) -> None:
    made, served = SCALES[scale]
    assert same(make, lambda: {"scale": made()}) == 2 * served


def test_a_number_is_taken_by_its_type_and_not_by_its_hash() -> None:
    """Fraction(1, 8) hashes as 0.125 does: a scale seen before must not stand in for it."""
    enable()
    outcome(quantized)
    assert outcome(quantized, scale=Fraction(1, 8))[0] is ValueError


def test_a_scale_that_changes_in_place_is_read_anew_and_not_kept() -> None:
    scale = mx.array(0.125)
    enable()
    counts = []
    for value in (0.125, 1.0, 3.0):
        scale -= scale - value  # in place
        mx.eval(scale)
        want = mx.fast.scaled_dot_product_attention(
            *(attention()[name] for name in ("queries", "keys", "values")), scale=value
        )
        assert close(outcome(attention, scale=scale), want)
        counts.append(sys.getrefcount(scale))
    assert len(set(counts)) == 1


def test_scales_that_change_with_the_position_are_not_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_call, "MAX_SCALES", 3)
    scales = attention_call._Scales()
    for i in range(10):
        assert scales.make(0.5 + i).item() == 0.5 + i
        assert len(scales) <= 3


SHAPE = (1, 1, 1, 20)
MASKED: dict[str, tuple[Callable[[], Any], bool]] = {
    "bool": (lambda: mx.arange(20) % 3 > 0, True),
    "the queries' dtype": (lambda: mx.zeros(SHAPE, mx.bfloat16), True),
    "float16": (lambda: mx.zeros(SHAPE, mx.float16), False),
    "float32": (lambda: mx.zeros(SHAPE), False),
    "int32": (lambda: mx.zeros(SHAPE, mx.int32), False),
    "uint8": (lambda: mx.ones(SHAPE, mx.uint8), False),
    "complex64": (lambda: mx.zeros(SHAPE, mx.complex64), False),
    "no axes": (lambda: mx.zeros((), mx.bfloat16), False),
    "np float32": (lambda: np.zeros(SHAPE, np.float32), False),
    "np bool": (lambda: np.ones(SHAPE, bool), False),
    "a list": (lambda: [[True] * 20], False),
    "text": (lambda: "full", False),
    "a number": (lambda: 1.0, False),
}


@pytest.mark.parametrize("make", [attention, quantized])
@pytest.mark.parametrize("mask", MASKED)
def test_a_mask_of_any_type(make: Callable[..., dict[str, Any]], mask: str) -> None:
    made, served = MASKED[mask]
    assert same(make, lambda: {"mask": made()}) == 2 * served


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
@pytest.mark.parametrize("make", [attention, quantized])
def test_an_operand_that_is_no_array(make: Callable[..., dict[str, Any]], name: str) -> None:
    for value in (None, 1.0, [[1.0]], np.zeros((1, 2, 20, 64), np.float32)):
        assert same(make, lambda value=value: {name: value}) == 0


CACHES: dict[str, Callable[[], Any]] = {
    "no bits": KVCache,
    "another group": lambda: QuantizedKVCache(group_size=64, bits=8),
    "other bits": lambda: QuantizedKVCache(group_size=32, bits=4),
    "no cache's class": object,
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_does_not_fit_what_it_holds(cache: str) -> None:
    """mlx-lm reads bits and group off the cache, also where calls of those shapes were served."""
    assert same(quantized, lambda: {"cache": CACHES[cache]()}) == 0
    outcome(quantized)
    assert same(quantized, lambda: {"cache": CACHES[cache]()}) == 0


@pytest.mark.parametrize("shape", [(4, 1, 20), (1, 4, 1, 20), (2, 1, 20), (1, 2, 1, 20)])
def test_a_mask_of_several_heads_over_a_quantised_cache(shape: tuple[int, ...]) -> None:
    """mlx-lm takes some of them, in its own meaning, and refuses one for each query head; a kernel
    alone would serve it."""
    mask = mx.random.normal(shape, key=mx.random.key(3)).astype(mx.bfloat16)
    assert isinstance(attention_call.describe(**quantized(mask=mask)), str)
    assert same(quantized, lambda: {"mask": mask}) == 0


def test_a_served_call_leaves_the_queries_as_they_are() -> None:
    """mlx-lm's attention over a quantised cache scales the caller's queries in place."""
    queries = attention()["queries"]
    given = mx.array(queries)
    enable()
    outcome(quantized, queries=given)
    assert hits() == 1
    assert mx.array_equal(given, queries)


def test_sinks_of_numpy() -> None:
    assert same(attention, lambda: {"sinks": np.zeros(4, np.float32)}) == 0

"""Sums with norms, and norms with rotations, made by one launch: right, and found in models."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from samples import needs_clang

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.decode import fused, launches
from mlx_lm_openevolve.decode.fused import Fusing, Heads, Rope
from mlx_lm_openevolve.decode.look import in_place
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, STEP_VERSION
from mlx_lm_openevolve.runtime.patch import installed

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Units in the last place by which two roundings of nearly one number may differ.
ULP = {mx.float32: 2.0**-20, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves, on the CPU."""
    monkeypatch.setattr(launches, "backend", lambda: "host")


def close(a: mx.array, b: mx.array) -> bool:
    x, y = (np.array(v.astype(mx.float32)) for v in (a, b))
    bound = ULP[b.dtype] * np.maximum(np.abs(y), 1.0)
    return a.dtype == b.dtype and x.shape == y.shape and bool(np.all(np.abs(x - y) <= 2 * bound))


def drawn(seed: int, *shape: int, dtype: mx.Dtype = mx.float32, by: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape) * by).astype(dtype)


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "width"), [(1, 64), (3, 2050), (2, 4096)])
def test_a_sum_and_its_norm(batch: int, width: int, dtype: mx.Dtype) -> None:
    x, y = (drawn(i, batch, 1, width, dtype=dtype, by=3.0) for i in (0, 1))
    weight = drawn(2, width, dtype=dtype)
    both, normed = fused.add_norm(x, y, weight, 1e-5)
    assert mx.array_equal(both, x + y)
    assert close(normed, mx.fast.rms_norm(x + y, weight, 1e-5))


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("number", [0.0, 1e-30, 3e38, float("inf"), float("nan")])
def test_numbers_at_the_ends_of_a_dtype(number: float) -> None:
    x, weight = mx.full((1, 1, 64), number, mx.bfloat16), drawn(1, 64, dtype=mx.bfloat16)
    both, normed = fused.add_norm(x, mx.zeros_like(x), weight, 1e-6)
    assert mx.array_equal(both, x, equal_nan=True)
    want = mx.fast.rms_norm(x, weight, 1e-6)
    assert mx.array_equal(mx.isnan(normed), mx.isnan(want))
    assert close(mx.nan_to_num(normed), mx.nan_to_num(want))


def pair_of(whole: mx.array, size: int, norms: bool) -> tuple[Heads, Heads]:
    """Four heads of queries and two of keys, with a head of something else before each."""
    weights = [drawn(i, size, dtype=whole.dtype) for i in (5, 6)] if norms else [None, None]
    q = Heads(whole, size, 4, size, (weights[0], 1e-5) if weights[0] is not None else None)
    k = Heads(whole, 6 * size, 2, size, (weights[1], 1e-6) if weights[1] is not None else None)
    return q, k


def in_float32(heads: Heads) -> Heads:
    norm = heads.norm and (heads.norm[0].astype(mx.float32), heads.norm[1])
    return heads._replace(whole=heads.whole.astype(mx.float32), norm=norm)


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    ("size", "dims", "pairs", "freqs", "offsets", "dtype"),
    [
        (128, 128, False, False, False, mx.bfloat16),
        (64, 32, True, False, True, mx.float16),
        (80, 80, False, True, True, mx.float32),
        (256, 64, True, True, False, mx.float32),
        (96, 48, False, False, True, mx.bfloat16),
    ],
)
def test_norms_and_rotations(
    size: int, dims: int, pairs: bool, freqs: bool, offsets: bool, dtype: mx.Dtype, norms: bool
) -> None:
    heads = pair_of(drawn(0, 2, 1, 8 * size, dtype=dtype), size, norms)
    offset = mx.array([5, 3001]) if offsets else mx.array(777)
    given = mx.array(np.linspace(1, 900, dims // 2), mx.float32) if freqs else None
    rope = Rope(dims, pairs, None if freqs else 10_000.0, 0.5, offset, given)
    for made, of in zip(fused.norm_rope(*heads, rope), heads, strict=True):
        # On the CPU MLX rounds sines to the dtype: against float32, each number to the roundings
        # of the largest of its head.
        want = np.array(fused._turned(in_float32(of), rope))
        error = np.abs(np.array(made.astype(mx.float32)) - want)
        assert made.dtype == dtype
        assert made.shape == want.shape
        assert np.all(error <= 2 * ULP[dtype] * np.abs(want).max(-1, keepdims=True))


def test_heads_in_mlx_s_own_operations() -> None:
    whole = drawn(0, 2, 1, 8 * 64)
    rope = Rope(64, False, 1e4, 1.0, mx.array(9), None)
    for of, first, last in zip(pair_of(whole, 64, norms=True), (64, 384), (320, 512), strict=True):
        x = whole[..., first:last].reshape(2, 1, -1, 64).transpose(0, 2, 1, 3)
        assert of.norm is not None
        want = nn.RoPE(64)(mx.fast.rms_norm(x, *of.norm), offset=9)
        assert mx.allclose(fused._turned(of, rope), want, atol=1e-6)


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """What kernels are asked for, by name, in a list that grows."""
    calls: list[str] = []

    def through(name: str) -> Any:
        original = getattr(fused, name)
        return lambda *args: calls.append(name) or original(*args)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("add_norm", "norm_rope"):
            patch.setattr(fused, name, through(name))
        yield calls


def watched(run: Any, fusing: Fusing | None = None) -> list[str]:
    """What is made by kernels while `run` is watched."""
    with counted() as calls, in_place((fusing or Fusing()).places):
        run()
    return calls


def test_only_a_sum_s_norm_is_fused() -> None:
    norm, x = nn.RMSNorm(64), drawn(0, 1, 1, 64)
    assert watched(lambda: norm(x + x)) == ["add_norm"]
    for run in (
        lambda: norm(x),
        lambda: norm(x + 1),
        lambda: norm(x + x[..., :1]),
        lambda: norm((x + x) * 2),
        lambda: norm((x + x).astype(mx.bfloat16)),
        lambda: norm(drawn(0, 1, 2, 64) + drawn(1, 1, 2, 64)),  # two tokens
        lambda: mx.fast.rms_norm(x + x, None, 1e-5),
    ):
        assert watched(run) == []


def test_only_heads_of_one_product_that_turn_alike_are_fused() -> None:
    """Each way in which mlx-lm's layers come from a product to heads, with the numbers of MLX's own
    operations; and none where something differs."""
    whole, at, other = drawn(0, 1, 1, 128 * 64 * 2), mx.array(7), mx.array(8)
    norm, rope = nn.RMSNorm(64), nn.RoPE(64)
    norm.weight = drawn(3, 64)

    def plain(x: mx.array) -> mx.array:
        return x.reshape(1, 1, -1, 64).transpose(0, 2, 1, 3)

    ways: list[Any] = [
        plain,
        lambda x: x.reshape(1, 1, 64, -1).swapaxes(1, 2),
        lambda x: x.reshape(1, 1, 64, 64, stream=mx.cpu).swapaxes(1, 2),
        lambda x: norm(x.reshape(1, 1, -1, 64)).transpose(0, 2, 1, 3),
        lambda x: norm(plain(x)),
        lambda x: norm(x.reshape((1, 1, 64, 64)).transpose([0, 2, 1, 3])),
    ]
    wrong: list[Any] = [
        lambda x: x.reshape(1, 1, 64, 64).transpose(0, 3, 1, 2),  # other numbers, the same shape
        lambda x: plain(x) * 2,
        lambda x: norm(norm(plain(x))),
        lambda x: x.reshape(1, 64, 1, 64),  # no such layer is known
        lambda x: x.reshape(1, 1, 64, 64).swapaxes(axis1=1, axis2=2),
        lambda x: x.reshape(1, 1, 64, 64).transpose(0, 2, 1, 3, stream=mx.cpu),
    ]

    def heads(way: Any, offset: Any = at, turn: Any = rope, second: Any = None) -> Any:
        """What a layer does, and what comes of it."""
        fusing, out = Fusing(), []
        q, k = whole[..., :4096], whole[..., 4096:8192]
        fusing.part(q, whole, 0)
        fusing.part(k, second if second is not None else whole, 4096)

        def run() -> None:
            out.append(rope(way(q), offset=at))
            out.append(turn(way(k), offset=offset))

        return watched(run, fusing), out

    for way in ways:
        made, out = heads(way)
        assert made == ["norm_rope"]
        for part, got in zip((whole[..., :4096], whole[..., 4096:8192]), out, strict=True):
            assert mx.allclose(got, rope(way(part), offset=at), atol=1e-5)
    assert [heads(way)[0] for way in wrong] == [[]] * len(wrong)
    assert heads(plain, offset=other)[0] == []
    assert heads(plain, offset=7)[0] == []
    assert heads(plain, turn=nn.RoPE(64, base=5e5))[0] == []
    assert heads(plain, turn=nn.RoPE(32))[0] == []
    assert heads(plain, second=drawn(1, 1, 1, 8192))[0] == []


def test_a_sum_that_was_read_before_its_norm_stays_right() -> None:
    norm, x, y = nn.RMSNorm(64), drawn(0, 1, 1, 64), drawn(1, 1, 1, 64)

    def run() -> None:
        h = x + y
        early = h * 2
        assert close(norm(h), mx.fast.rms_norm(mx.add(x, y), norm.weight, norm.eps))
        assert close(norm(h), mx.fast.rms_norm(mx.add(x, y), norm.weight, norm.eps)), "once more"
        assert mx.array_equal(h, mx.add(x, y))
        assert mx.array_equal(early, mx.add(x, y) * 2)

    assert watched(run) == ["add_norm"]


@pytest.mark.parametrize("which", ["none", "sum", "operand", "part", "normed", "turned"])
def test_what_is_changed_in_place_counts_as_it_is_then(which: str) -> None:
    norm, rope = nn.RMSNorm(64), nn.RoPE(64)

    def run(fusing: Fusing) -> list[mx.array]:
        def change(name: str, a: mx.array) -> mx.array:
            if name == which:
                a *= 2.0
                a[..., 0] = 1.0
            return a

        x, y, whole, at = *(drawn(i, 1, 1, 64 * (1 + i)) for i in range(3)), mx.array(7)
        y = y[..., :64] + 0
        h = x + y
        change("operand", y)
        change("sum", h)
        made = [norm(h), h]
        for name, first in (("q", 0), ("k", 64)):
            part = whole[..., first : first + 64]
            fusing.part(part, whole, first)
            only = change if name == "q" else lambda _, a: a
            part = norm(only("part", part).reshape(1, 1, 1, 64))
            part = rope(only("normed", part).swapaxes(1, 2), offset=at)
            made.append(only("turned", part))
        return made

    fusing, found = Fusing(), list[mx.array]()
    calls = watched(lambda: found.extend(run(fusing)), fusing)
    assert (calls == ["add_norm", "norm_rope"]) is (which == "none")
    for got, want in zip(found, run(Fusing()), strict=True):
        assert mx.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sums"), [("llama", 2), ("qwen3", 2), ("gemma3_text", 0)])
def test_what_is_fused_in_a_model(name: str, sums: int) -> None:
    """Queries with keys in every layer; the sums before both norms where one layer's end and the
    next one's beginning are traced together, but for Gemma's, which mlx-lm compiles itself."""
    model = architectures.build(name)
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]):
        cache = empty_cache(model, 1)
        for _ in range(2):  # each half is traced
            mx.eval(model(mx.array([[1]]), cache=cache))
        splits = [split for x in steps.layers.values() for split, _ in x.splits.values()]
        assert len({*map(id, splits)}) == (2 if name == "gemma3_text" else 1)
        with counted() as calls:
            mx.eval(model(mx.array([[1]]), cache=cache))
    # In such a trace the first layer is run once more from its beginning; what of that nobody asks
    # for is dropped.
    pairs = len({(id(a), id(b)) for a, b in pairwise(splits)})
    assert calls.count("norm_rope") == 2 * pairs
    assert calls.count("add_norm") == sums * pairs


def test_verdicts_on_steps_are_about_these_kernels() -> None:
    """Whoever changes one raises STEP_VERSION: what was accepted with the old text is void."""
    folder = Path(fused.__file__).parent
    texts = [(folder / f"{name}.metal").read_bytes() for name in ("add_norm", "norm_rope")]
    assert (STEP_VERSION, hashlib.sha256(b"".join(texts)).hexdigest()[:12]) == (1, "7da5857136dc")

"""Sums with norms, and norms with rotations, made by one launch: right, and found in models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_lm_openevolve.backends import host
from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.decode import fused
from mlx_lm_openevolve.decode.fused import Fusing, Norm, Rope
from mlx_lm_openevolve.decode.split import _in_place
from mlx_lm_openevolve.decode.steps import ALL, Steps
from mlx_lm_openevolve.decode.structure import slug, structure

needs_clang = pytest.mark.skipif(bool(host.unavailable()), reason=host.unavailable() or "available")
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Units in the last place by which two roundings of nearly one number may differ.
ULP = {mx.float32: 2.0**-20, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves, on the CPU."""
    monkeypatch.setattr(fused, "_backend", lambda: "host")


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
def test_views_and_numbers_at_the_ends_of_a_dtype() -> None:
    whole = drawn(0, 2, 1, 3 * 128, dtype=mx.bfloat16)
    x, y = whole[..., ::2][..., :128], whole[..., 256:]
    weight = drawn(1, 256, dtype=mx.bfloat16)[::2]
    both, normed = fused.add_norm(x, y, weight, 1e-6)
    assert mx.array_equal(both, x + y)
    assert close(normed, mx.fast.rms_norm(x + y, weight, 1e-6))
    for number in (0.0, 1e-30, 3e38, float("inf"), float("nan")):
        x = mx.full((1, 1, 64), number, mx.bfloat16)
        both, normed = fused.add_norm(x, mx.zeros_like(x), weight[:64], 1e-6)
        assert mx.array_equal(both, x, equal_nan=True)
        want = mx.fast.rms_norm(x, weight[:64], 1e-6)
        assert mx.array_equal(mx.isnan(normed), mx.isnan(want))
        assert close(mx.nan_to_num(normed), mx.nan_to_num(want))


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("normed", [False, True])
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
    size: int, dims: int, pairs: bool, freqs: bool, offsets: bool, dtype: mx.Dtype, normed: bool
) -> None:
    # As a merged product hands them over: parts of one row, turned so that heads come first.
    whole = drawn(0, 2, 1, 6 * size, dtype=dtype)
    q, k = whole[..., : 4 * size], whole[..., 4 * size :]
    q, k = (x.reshape(2, 1, -1, size).transpose(0, 2, 1, 3) for x in (q, k))
    offset = mx.array([5, 3001]) if offsets else mx.array(777)
    given = mx.array(np.linspace(1, 900, dims // 2), mx.float32) if freqs else None
    rope = Rope(dims, pairs, None if freqs else 10_000.0, 0.5, offset, given)
    norms = tuple(
        Norm(x, drawn(i, size, dtype=dtype), 10.0 ** -(i + 4)) for i, x in enumerate((q, k))
    )
    made = fused.norm_rope(q, k, norms if normed else None, rope)  # type: ignore[arg-type]
    for x, norm, got in zip((q, k), norms, made, strict=True):
        want = mx.fast.rms_norm(x, norm.weight, norm.eps) if normed else x
        keywords = {key: value for key, value in rope._asdict().items() if key != "dims"}
        assert close(got, mx.fast.rope(want, dims, **keywords))


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


def watched(run: Any) -> list[str]:
    """What is made by kernels while `run` is watched."""
    with counted() as calls, _in_place(Fusing().places):
        run()
    return calls


def test_only_what_is_the_very_operation_is_fused() -> None:
    norm, x = nn.RMSNorm(64), drawn(0, 1, 1, 64)
    rope, heads = nn.RoPE(64), drawn(1, 1, 4, 1, 64)
    at, other = mx.array(7), mx.array(8)
    turned = [mx.fast.rope(heads, 64, traditional=False, base=1e4, scale=1.0, offset=7)]

    def outs(*made: mx.array) -> None:
        turned.extend(made)

    assert watched(lambda: norm(x + x)) == ["add_norm"]
    assert watched(lambda: outs(rope(heads, offset=at), rope(heads, offset=at))) == ["norm_rope"]
    assert all(mx.allclose(t, turned[0], atol=1e-6) for t in turned)
    for run in (
        lambda: norm(x),
        lambda: norm(x + 1),
        lambda: norm(x + x[..., :1]),
        lambda: norm((x + x) * 2),
        lambda: nn.RMSNorm(64)((x + x).astype(mx.bfloat16)),
        lambda: norm(drawn(0, 1, 2, 64) + drawn(1, 1, 2, 64)),  # two tokens
        lambda: mx.fast.rms_norm(x + x, None, 1e-5),
        lambda: rope(heads, offset=at),
        lambda: (rope(heads, offset=at), rope(heads, offset=other)),
        lambda: (rope(heads, offset=at), nn.RoPE(64, base=5e5)(heads, offset=at)),
        lambda: (rope(heads, offset=at), nn.RoPE(32)(heads, offset=at)),
        lambda: (rope(heads, offset=3), rope(heads, offset=3)),
    ):
        assert watched(run) == []


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


@pytest.mark.parametrize(("name", "sums"), [("llama", 2), ("qwen3", 2), ("gemma3_text", 0)])
def test_what_is_fused_in_a_model(name: str, sums: int) -> None:
    """Queries with keys in every layer; the sums before both norms where one layer's end and the
    next one's beginning are traced together, but for Gemma's, which mlx-lm compiles itself."""
    model = architectures.build(name)
    steps = Steps({slug(structure(model), 1): ALL})
    steps.install()
    try:
        cache = empty_cache(model, 1)
        for _ in range(2):  # each half is traced
            mx.eval(model(mx.array([[1]]), cache=cache))
        splits = [split for x in steps.layers.values() for split, _ in x.splits.values()]
        assert len({*map(id, splits)}) == (2 if name == "gemma3_text" else 1)
        with counted() as calls:
            mx.eval(model(mx.array([[1]]), cache=cache))
    finally:
        steps.restore()
    # In such a trace the first layer is run once more from its beginning; what of that nobody asks
    # for is dropped.
    pairs = len({(id(a), id(b)) for a, b in pairwise(splits)})
    assert calls.count("norm_rope") == 2 * pairs
    assert calls.count("add_norm") == sums * pairs

"""What one launch makes together is what MLX's own operations make."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from rounding import ULP, close, drawn
from samples import needs_clang

from mlx_lm_openevolve.decode import fused, launches
from mlx_lm_openevolve.decode.fused import Heads, Rope
from mlx_lm_openevolve.kernels.verdict import STEP_VERSION

DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves, on the CPU."""
    monkeypatch.setattr(launches, "backend", lambda: "host")


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


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width", "k"), [((1, 1), 4, 2), ((8, 1), 128, 8), ((3,), 1000, 1), ((2, 1), 33, 33)]
)
def test_the_largest_of_a_softmax(
    rows: tuple[int, ...], width: int, k: int, dtype: mx.Dtype, first: bool
) -> None:
    """As a stable sort orders them; in bfloat16 many are equal."""
    x = drawn(0, *rows, width, dtype=dtype, by=2.0)
    indices, scores, shares, twice = fused.route(x, k, first)
    assert mx.array_equal(twice, mx.concatenate([indices, indices + width], -1))
    every = mx.softmax(x, -1, precise=True)
    numbers = np.array(every.astype(mx.float32))
    order = np.argsort(-numbers if first else numbers, -1, kind="stable")
    want = mx.array(order[..., :k] if first else order[..., -k:])
    assert indices.dtype == mx.uint32
    if dtype != mx.float32:  # there an exponential's last bit decides on what is next to equal
        assert mx.array_equal(indices, want)
    assert close(scores, mx.take_along_axis(every, want, -1))
    assert close(mx.take_along_axis(every, indices, -1), scores)
    exact = scores.astype(mx.float32)
    assert close(shares, (exact / exact.sum(-1, keepdims=True)).astype(dtype))


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 0.0])
@pytest.mark.parametrize("everywhere", [False, True])
def test_experts_are_experts_whatever_is_computed(
    number: float, everywhere: bool, first: bool
) -> None:
    """Each once, none beyond the last: a matrix is read where an index says."""
    x = drawn(0, 2, 1, 40)
    x[..., slice(None) if everywhere else 7] = number
    indices, scores, *_ = fused.route(x, 6, first)
    for row in indices.reshape(-1, 6).tolist():
        assert len({*row}) == 6
        assert max(row) < 40
    want = mx.isnan(mx.softmax(x, -1, precise=True)).any(-1)
    assert mx.array_equal(mx.isnan(scores).all(-1), want)


@needs_clang
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (8, 1, 8, 2050), (3, 1, 64)])
def test_what_experts_return_is_added_up(shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    y, scores = drawn(0, *shape, dtype=dtype), drawn(1, *shape[:-1], 1, dtype=dtype)
    want = (y.astype(mx.float32) * scores.astype(mx.float32)).sum(-2).astype(dtype)
    assert close(fused.mix(y, scores), want)


def test_verdicts_on_steps_are_about_these_kernels() -> None:
    """Whoever changes one raises STEP_VERSION: what was accepted with the old text is void."""
    folder = Path(fused.__file__).parent
    texts = [
        (folder / f"{name}.metal").read_bytes()
        for name in ("add_norm", "mix", "norm_rope", "route")
    ]
    assert (STEP_VERSION, hashlib.sha256(b"".join(texts)).hexdigest()[:12]) == (2, "dcf880eafcb0")

"""Quantised caches: what is read off their tuples, and what stands in for mlx-lm's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_openevolve.ops.attention import quantized
from mlx_lm_openevolve.ops.attention.reference import Packed, case, decode, pack
from mlx_lm_openevolve.ops.attention.reference.layouts import Placing
from mlx_lm_openevolve.ops.attention.reference.plans import plans
from mlx_lm_openevolve.ops.attention.workload import Bucket, Workload


def packed(width: int, bits: int, group: int) -> list[mx.array]:
    floats = mx.random.normal((2, 3, 7, width), key=mx.random.key(1)).astype(mx.bfloat16)
    return list(mx.quantize(floats, group_size=group, bits=bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("width", "v_width", "group"), [(64, 64, 32), (128, 64, 64)])
def test_bits_group_and_width_are_read_off_the_shapes(
    bits: int, width: int, v_width: int, group: int
) -> None:
    found = quantized.layout(width, packed(width, bits, group), packed(v_width, bits, group))
    assert found == (bits, group, v_width)


@pytest.mark.parametrize(
    ("keys", "values", "why"),
    [
        (packed(128, 4, 64)[:2], packed(128, 4, 64), "words, scales, biases"),
        (packed(128, 4, 64), packed(128, 4, 32), "quantised differently"),
        (packed(96, 4, 32), packed(128, 4, 64), "do not fit"),
        ([mx.zeros((2, 3, 7, 16))] * 3, packed(128, 4, 64), "words of four axes"),
        ([*packed(128, 4, 64)[:2], packed(128, 4, 32)[2]], packed(128, 4, 64), "shape"),
    ],
)
def test_what_does_not_fit_is_named(keys: Any, values: Any, why: str) -> None:
    found = quantized.layout(128, keys, values)
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_reference_unpacks_as_mlx_does(bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = rng.standard_normal((1, 2, 5, 128)).astype(np.float32)
    found = pack(x, "float32", bits, 32, [Placing(lead=(0, 0, 3, 0))] * 3)
    parts = tuple(mx.array(np.ascontiguousarray(p)) for p in (found.words, found.scales))
    want = mx.dequantize(*parts, mx.array(np.ascontiguousarray(found.biases)), 32, bits)
    for head in range(2):
        np.testing.assert_allclose(found.decode(0, head), np.array(want)[0, head], atol=1e-5)
    outside = found.placed[1].buffer[:, :, :3]
    assert np.isnan(outside).all()


def test_standing_in_for_stock_leaves_the_queries_alone() -> None:
    w = Workload(1, 4, 2, 1, 33, 64, 64, "float32", kv_bits=8, kv_group=32)
    inputs = case("peaked", w, 0).upload()
    before = np.array(inputs.queries)
    rest = (inputs.keys, inputs.values, 0.125, None, 8, 32)
    stock = quantized.stock(inputs.queries, *rest)
    ours = quantized.dequantised(inputs.queries, *rest)
    assert np.array_equal(np.array(inputs.queries), before)
    np.testing.assert_allclose(np.array(stock), np.array(ours), rtol=1e-3, atol=1e-4)


def test_the_truth_is_that_of_the_numbers_kept() -> None:
    """Not of what was quantised: that error is the cache's, not the kernel's."""
    w = Workload(1, 2, 2, 1, 40, 64, 64, "bfloat16", kv_bits=2, kv_group=64)
    asked = case("peaked", w, 0)
    assert isinstance(asked.keys, Packed)
    assert isinstance(asked.values, Packed)
    scores = asked.keys.decode(0, 1) @ decode(asked.queries[0, 1, 0], "bfloat16") * asked.scale
    weights = np.exp(scores - scores.max())
    want = weights / weights.sum() @ asked.values.decode(0, 1)
    truth = asked.reference()
    np.testing.assert_allclose(truth.out[truth.pairs.index((0, 1))][0, 0], want, rtol=1e-9)


def test_stock_runs_on_this_machine_or_is_known_not_to() -> None:
    w = Workload(1, 4, 2, 1, 64, 64, 64, "bfloat16", kv_bits=4, kv_group=64)
    assert quantized.stock_runs(w) is (not mx.cuda.is_available() if hasattr(mx, "cuda") else True)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_no_input_of_a_quantised_case_is_constant_on_metal(kv_heads: int) -> None:
    bucket = Bucket(1, 4, kv_heads, 1, 8, 64, 64, "bfloat16", kv_bits=8, kv_group=64)
    for seed in range(8):
        for exact, _ in plans(bucket, seed, brief=False):
            assert exact.batch * kv_heads * exact.kv_len >= 8

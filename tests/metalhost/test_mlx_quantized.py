"""MLX's own quantised products, unmodified, on metalhost: right against float64, and counted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx_kernels as mlx
import numpy as np
import pytest
from mlx_kernels import ROUNDING, random_array, wide
from mlx_kernels import assert_right as assert_right_array
from mlx_quantized import Product, dequantize, operands, quantize, run, source, unpack
from samples import needs_clang

pytestmark = needs_clang

# Sums in float32, relative to the largest result: their terms are up to ten times as large.
SUMS = 2e-6

# Rows, outputs and depth of each kernel: whole tiles, then edges.
SHAPES = {
    "qmv": [(1, 16, 384), (2, 5, 128), (3, 12, 320)],
    "qmv_fast": [(1, 64, 512), (2, 61, 1024)],
    "qmv_quad": [(2, 64, 128), (1, 128, 64)],
    "qmv_wide": [(2, 40, 256), (6, 33, 128), (13, 16, 384)],
    "qvm": [(1, 128, 96), (3, 256, 100)],
    "qvm_split_k": [(1, 128, 1024), (2, 128, 1100)],
    "qmm_t": [(32, 64, 128), (40, 48, 256), (9, 33, 128)],
    "qmm_n": [(32, 128, 64), (9, 128, 80)],
    "qmm_t_splitk": [(9, 64, 512), (33, 48, 256)],
    "gather_qmv": [(5, 16, 128)],
    "gather_qmv_fast": [(5, 32, 512)],
    "gather_qmm_rhs": [(35, 48, 128), (64, 32, 256)],
}
FORMATS = [*itertools.product(("affine",), (4, 8), (32, 64, 128)), ("mxfp4", 4, 32)]
IN_CI = [
    Product("qmv", 2, 5, 128, "float32", bits=8, group=32),
    Product("qvm", 3, 256, 100, "float16", group=128),
    Product("qmm_t", 40, 48, 256),
    Product("qmv_fast", 2, 61, 1024, group=32, mode="mxfp4"),
]


def products() -> list[Any]:
    """Every kernel in every format; shapes and dtypes take turns. What CI does not ask is slow."""
    dtypes = itertools.cycle(ROUNDING)
    cases = []
    for kernel, shapes in SHAPES.items():
        turns = itertools.cycle(shapes)
        experts = 4 if kernel.startswith("gather") else 0
        for mode, bits, group in FORMATS:
            for _ in shapes:
                case = Product(kernel, *next(turns), "float32", bits, group, mode, experts)
                if (case.k if case.transposed else case.n) % group == 0:
                    cases.append(replace(case, dtype=next(dtypes)))
                    break
    rest = [pytest.param(c, marks=pytest.mark.slow) for c in cases if c not in IN_CI]
    return [*IN_CI, *rest]


def text(findings: Any) -> str:
    return "\n".join(str(f) for f in findings)


def assert_right(p: Product, result: Any) -> None:
    """The result is rounded; so are weights that a kernel of tiles (qmm) unpacks, unless they are
    exact (mxfp4), and partial sums (split_k). One of a sum's roundings goes up, another down."""
    twice = p.kernel == "qvm_split_k" or ("qmm" in p.kernel and p.mode == "affine")
    expected = operands(p).expected
    error = np.abs(result - expected).max() / np.abs(expected).max()
    assert error <= (2 if twice else 1) * ROUNDING[p.dtype] + SUMS


@pytest.mark.parametrize("p", products(), ids=str)
def test_quantised_products_match_float64(p: Product) -> None:
    done, result = run(p)
    assert done.ok, text(done.findings)
    assert_right(p, result)


@pytest.mark.parametrize(
    ("p", "reads"),
    [
        # Each row of x reads all weights; each simdgroup, of four outputs, a row of x.
        (Product("qmv_fast", 1, 64, 512), (1, 64 // 4)),
        pytest.param(Product("qmv_fast", 4, 64, 512), (4, 64), marks=pytest.mark.slow),
        pytest.param(
            Product("qmv_fast", 1, 64, 512, group=32, mode="mxfp4"),
            (1, 16),
            marks=pytest.mark.slow,
        ),
        # Five rows of x at most share a reading of the weights.
        pytest.param(Product("qmv_wide", 5, 64, 512), (1, 80), marks=pytest.mark.slow),
        pytest.param(Product("qmv_wide", 10, 64, 512), (2, 160), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_readings_of_the_weights_are_counted(p: Product, reads: tuple[int, int]) -> None:
    """`reads`: how often all weights are read, and rows of x in all, by simdgroups' accesses."""
    done, result = run(p, count=True)
    assert done.ok, text(done.findings)
    assert_right(p, result)
    o, counters = operands(p), done.counters
    assert counters is not None
    distinct = {name: r.compulsory_bytes for name, r in counters.reads.items()}
    assert distinct == {name: a.nbytes for name, a in {**o.weights, "x": o.x}.items()}
    useful = {name: r.useful_bytes for name, r in counters.reads.items()}
    assert useful.pop("x") == reads[1] * o.x.nbytes // p.m
    assert useful == {name: reads[0] * a.nbytes for name, a in o.weights.items()}
    assert counters.device_write_bytes == counters.compulsory_write_bytes == p.m * p.n * 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize(
    ("kernel", "n", "k", "kind"),
    [
        # Where N is no multiple of 4, the last simdgroup is moved back and computes some outputs
        # again, with the same value.
        ("qmv", 30, 128, "race"),
        # Scales are read before the bound of the outputs is looked at.
        ("qmv_quad", 40, 64, "out-of-bounds"),
    ],
)
def test_findings_are_the_ones_that_are_there(
    mode: str, kernel: str, n: int, k: int, kind: str
) -> None:
    p = Product(kernel, 1, n, k, group=32, mode=mode)
    done, result = run(p)
    assert {f.kind for f in done.findings} == {kind}, text(done.findings)
    if done.outputs:
        assert_right(p, result)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "bits", "group"), FORMATS)
def test_quantisation_is_to_the_nearest(mode: str, bits: int, group: int) -> None:
    """Within half a step of the weight, or of the end of its group's range if it lies beyond. MLX
    makes zero exact, or the edge farther from it, and lets the other edge fall where it may."""
    w = random_array("float32", 6, 256)
    done = quantize(w, bits, group, mode)
    assert done.ok, text(done.findings)
    words, scales, *biases = done.outputs
    got = unpack(words.view(mx.uint32), scales, biases[0] if biases else None, bits)
    weights = wide(w).reshape(6, -1, group)
    if mode == "affine":
        step, most = np.abs(wide(scales)), (1 << bits) - 1
        ends = wide(biases[0]), wide(biases[0]) + most * wide(scales)
        low, high = np.minimum(*ends)[..., None], np.maximum(*ends)[..., None]
        beyond = np.maximum(low - weights, weights - high).max(-1)
        assert (beyond <= step).all()
        weights = np.clip(weights, low, high)
    else:
        step = 2 * 2.0 ** (wide(scales) - 127)  # between 4 and 6, the widest
    error = np.abs(got.reshape(weights.shape) - weights).max(-1)
    assert (error <= step / 2 * (1 + 1e-4)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "bits", "group"), FORMATS)
def test_dequantised_weights_match_float64(mode: str, bits: int, group: int) -> None:
    p = Product("qmm_t", 1, 6, 256, "bfloat16", bits, group, mode)
    done, expected = dequantize(p)
    # scale * q is rounded before the bias is added; what a mxfp4 holds is exact.
    assert_right_array(done, expected, 2 * ROUNDING["bfloat16"] if mode == "affine" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("m", [9, 32])
def test_every_barrier_of_qmm_is_needed(m: int) -> None:
    """33 outputs are a whole tile and an edge. The last barrier, before the result is stored from
    registers, orders nothing."""
    p = Product("qmm_t", m, 33, 128)
    whole = source("affine")
    start = whole.index("void qmm_t_impl(")
    first = whole[:start].count("threadgroup_barrier(")
    body = whole[start : whole.index("void qmm_n_impl(")]
    assert body.count("threadgroup_barrier(") == 9, "MLX has changed: count the barriers anew"
    needed = range(4) if m < 32 else range(4, 8)
    for index in (*needed, 8):
        done, _ = run(p, mlx.without_barrier(whole, first + index))
        kinds = {f.kind for f in done.findings}
        assert bool(kinds & {"race", "uninitialised"}) == (index in needed), (index, kinds)

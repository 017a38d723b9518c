"""What the gate asks of quantised products: right answers pass, wrong ones do not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_openevolve.gate.correctness import passes, try_mutants
from mlx_lm_openevolve.ops.linear import OP, Bucket
from mlx_lm_openevolve.ops.linear.call import stock
from mlx_lm_openevolve.ops.linear.mutants import MUTANTS, ProductMutant, applicable, correct
from mlx_lm_openevolve.ops.linear.reference import ProductQuestion, _far, cases, in_float32
from mlx_lm_openevolve.ops.linear.timing_inputs import ProductTimingInputs

PACKINGS = [(4, 64, "affine"), (8, 32, "affine"), (4, 128, "affine"), (4, 32, "mxfp4")]
EXPERTS = [
    (4, 64, "affine_experts", 5),
    (8, 32, "affine_experts", 5),
    (4, 32, "mxfp4_experts", 5),
]


def bucket(rows: int, dtype: str, packing: tuple[Any, ...], n: int = 70, k: int = 640):
    return Bucket(rows, 1, n, k, dtype, *packing)


def float32(w):
    """A right implementation: unpacked weights, sums in float32."""

    def call(x, *given):
        return mx.array(in_float32(w, x, *given)).astype(x.dtype)

    return call


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_every_mutant_is_killed_and_a_right_product_passes(packing, dtype):
    all_die(packing, dtype, (1, 4))


@pytest.mark.parametrize("packing", EXPERTS, ids=str)
def test_every_mutant_of_experts_is_killed_and_a_right_product_passes(packing):
    all_die(packing, "bfloat16", (1, 2, 8))


def all_die(packing, dtype, numbers_of_rows):
    for rows in numbers_of_rows:
        small = bucket(rows, dtype, packing)
        asked = [case() for case in OP.questions.cases(small, rows, brief=True)]
        outcome = passes(float32, asked)
        assert outcome.reason == ""
        assert 0 < outcome.margin <= 1
        result = try_mutants(small, asked)
        assert result.survivors == ()
        assert result.killed == result.of >= 27


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_every_mutant_is_killed_by_few_questions_wherever_asked(seed):
    for small in OP.questions.usual:
        for each in {small, OP.questions.proxy(replace(small, n=4096 + 33, k=14336))}:
            asked = [case() for case in OP.questions.cases(each, seed, brief=True)]
            assert passes(float32, asked).reason == "", each.slug
            assert try_mutants(each, asked).survivors == (), each.slug


def test_there_are_enough_mutants_and_their_names_differ():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    asked = [bucket(rows, "float32", p) for rows in (1, 4) for p in PACKINGS + EXPERTS]
    assert {m.name for b in asked for m in applicable(b)} == {m.name for m in MUTANTS}


def test_numbers_are_unpacked_as_mlx_packs_them():
    for packing in PACKINGS:
        for case in cases(bucket(2, "float32", packing), 3, True):
            w = case.workload
            weight, scales, biases = case.weights.upload(w)
            kind = {"group_size": w.group, "bits": w.bits, "mode": w.variant}
            want = mx.dequantize(weight, scales, biases, **kind, dtype=mx.float32)
            values, _ = case.weights.decoded(w)
            size = _far(w, case.name.split()[0])[1]  # a power of two
            assert np.allclose(values / size, np.array(want) / size, rtol=1e-6, atol=1e-6)


def test_x_lies_in_every_way_and_is_the_same():
    found = set()
    for case in cases(bucket(8, "bfloat16", PACKINGS[0]), 1, False):
        question = ProductQuestion(case, 1)
        found.add(case.layout)
        assert np.array_equal(np.array(question.arguments[0].astype(mx.float32)), case.x)
        assert not question.changed()
    assert found == {"whole", "last", "turned", "wide", "odd", "apart"}


def test_rows_come_as_sequences_as_tokens_and_as_both():
    for seed in range(8):
        shapes = {
            (case.workload.batch > 1, case.workload.length > 1)
            for case in cases(bucket(8, "bfloat16", PACKINGS[0]), seed, True)
        }
        assert {(True, False), (False, True), (True, True)} <= shapes


@pytest.mark.parametrize("rows", [4, 8, 16])
def test_a_small_bucket_is_asked_at_every_number_of_rows(rows):
    for seed in range(8):
        asked = list(cases(bucket(rows, "bfloat16", PACKINGS[0]), seed, False))
        assert {case.workload.rows for case in asked} == set(range(rows // 2 + 1, rows + 1))


@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[3]], ids=str)
def test_a_factor_that_groups_share_is_drawn_from_small_to_large(packing):
    for brief in (True, False):
        made = list(cases(bucket(4, "bfloat16", packing), 0, brief))
        largest = [np.abs(case.weights.shared(case.workload)[0]).max() for case in made]
        assert min(largest) < 2.0**-24
        assert max(largest) > 2.0**16


def test_an_output_beyond_the_sample_is_judged_too():
    """Float64 answers are computed for a part of a large matrix."""
    wide = bucket(1, "float32", PACKINGS[0], n=20_000, k=640)
    question = ProductQuestion(next(cases(wide, 0, True)), 0)
    assert len(question.outputs) < wide.n
    missing = int(np.setdiff1d(np.arange(wide.n), question.outputs)[7])
    right = question.answer.copy()
    assert question.fault(right) == ""
    right[..., missing] += 0.05 * np.abs(right).max()
    assert question.error(right)[0] <= question.limits[0]
    assert f"output {missing}" in question.fault(right)


def test_rows_go_to_experts_in_every_way():
    """To one expert and to several, in their order and not, the last expert among them."""
    for rows in (2, 8, 64):
        routed = [case.indices for case in cases(bucket(rows, "bfloat16", EXPERTS[0]), 1, True)]
        assert {len(np.unique(i)) > 1 for i in routed} == {True, False}
        assert {bool((np.diff(i.ravel().astype(int)) >= 0).all()) for i in routed} == {True, False}
        assert all(i.shape[0] * i.shape[1] <= rows for i in routed)
        assert sum(4 in i for i in routed) >= 5
        if rows > 5:
            assert any(len(np.unique(i)) == 5 for i in routed)


def test_a_product_of_experts_is_that_of_each_rows_own_matrix():
    for case in cases(bucket(8, "float32", EXPERTS[1]), 2, True):
        question = ProductQuestion(case, 2)
        w, (x, indices, *weights) = case.workload, question.arguments
        dense = w.exact(batch=1, length=1, experts=0, variant="affine")
        for i, expert in enumerate(np.array(indices).ravel()):
            row = x[i // w.length].reshape(1, 1, -1)
            want = in_float32(dense, row, *(part[int(expert)] for part in weights)).ravel()
            assert np.array_equal(question.answer.reshape(w.rows, -1)[i], want)


@pytest.mark.parametrize("rows", [8, 64])
def test_timed_rows_go_to_other_experts_at_each_call(rows):
    w = bucket(rows, "bfloat16", (4, 64, "affine_experts", 40)).exact()
    inputs = ProductTimingInputs(w, 1 << 20, 1 << 30, 0)
    routed = [np.array(given[0]).ravel() for given in inputs.rest]
    assert all(len(np.unique(indices)) == w.chosen for indices in routed)
    assert all((np.sort(i) == i).all() == (rows == 64) for i in routed)
    # Of one set of weights none is read twice.
    for given, following in itertools.pairwise(inputs.rest):
        shared = set(np.array(given[0]).ravel()) & set(np.array(following[0]).ravel())
        assert not (given[1] is following[1] and shared)


@pytest.mark.parametrize("packing", PACKINGS + EXPERTS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_timed_results_are_rechecked_and_x_stays_as_it_is(packing, dtype):
    w = bucket(2, dtype, packing).exact()
    inputs = ProductTimingInputs(w, 1 << 20, 1 << 30, 0)
    assert sum(part.nbytes for given in inputs.rest for part in given if part is not None) > 1 << 20
    state = inputs.first
    for at, given in enumerate(inputs.rest[:4]):
        right = float32(w)(state, *given)
        assert inputs.recheck(at, state, right) == ""
        for mutant in MUTANTS:
            if mutant.name in ("zeros", "last-output-lost", "scales-of-the-next-group"):
                assert inputs.recheck(at, state, mutant.build(w)(state, *given)), mutant.name
        state = inputs.next(right)
        assert mx.array_equal(state, inputs.first).item()
        assert not mx.array_equal(inputs.next(right + 1), inputs.first).item()
    with pytest.raises(MemoryError):
        ProductTimingInputs(w, 1 << 20, w.stored_bytes(), 0)


def test_mlxs_own_product_passes_in_float32():
    small = bucket(4, "float32", PACKINGS[0])
    asked = [case() for case in OP.questions.cases(small, 0)]
    assert passes(lambda w: lambda *given: stock(w, *given), asked).reason == ""
    assert isinstance(correct, ProductMutant)
    assert passes(correct.build, asked).reason == ""

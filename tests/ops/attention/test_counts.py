"""Counted keys: the answer is exact, and one key more or less is refused at any length."""

from __future__ import annotations

import numpy as np
import pytest
from wrong_kernels import bucket

from mlx_lm_openevolve.gate.correctness import passes
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.reference.inputs import cases, counts
from mlx_lm_openevolve.ops.attention.reference.question import Counted, CountQuestion
from mlx_lm_openevolve.ops.encoding import decode

LATENT = bucket(
    "additive", kv_len=64, latent=True, q_heads=4, kv_heads=1, head_dim=512, v_head_dim=512
)
BUCKETS = (
    *(bucket(mask, 4, 256, dtype=d) for mask in ("none", "bool") for d in ("bfloat16", "float16")),
    *(bucket("causal", 8, 64, sinks=True), bucket("additive", 8, 64, sinks=True)),
    *(bucket(kv_bits=4, kv_group=32), bucket("bool", kv_bits=8, kv_group=64), LATENT),
)


def asked(on, seed, brief=False):
    """All cases of a verdict whose keys are counted: those made for that alone, and those beside
    the others."""
    if not brief:
        yield from counts(on, seed)
    for case in cases(on, seed, brief):
        yield case.beside()


@pytest.mark.parametrize("on", BUCKETS, ids=lambda on: on.slug)
def test_attention_itself_passes_and_one_key_less_does_not(on):
    assert passes(OP.questions.correct.build, map(CountQuestion, counts(on, 3))).reason == ""
    for case in asked(on, 3):
        counted = Counted(case, ())
        assert counted.fault(answered(counted.reference, case)) == ""
        lost = answered(counted.reference, case, signs(case, 0, 0)[-1])
        worst, average = counted.reference.error(lost)
        assert worst > counted.limits[0]
        assert average > counted.limits[1]
        assert "counted once" in counted.fault(lost)


def answered(right, case, less=0.0):
    """The right answer [B, Hq, L, Dv], zero where a row sees no key, but for a value that is lost
    on its way to the sum."""
    w = case.workload
    got = np.zeros((w.batch, w.q_heads, w.q_len, w.v_head_dim))
    for at, (b, h) in enumerate(right.pairs):
        heads = slice(h * w.group, (h + 1) * w.group)
        share = right.mass[at].min(-1, keepdims=True) / w.kv_len
        rows = np.where(right.live[at][..., None], right.out[at] - less * share, 0)
        got[b, heads][:, right.rows] = rows
    return got


def signs(case, b, h):
    """The values [N, Dv] of a pair."""
    if case.workload.kv_bits:
        return case.values.decode(b, h)
    return decode(case.values[b, h], case.workload.dtype)


def test_values_are_1_and_minus_1_and_some_columns_1_alone():
    for on in BUCKETS:
        for case in asked(on, 5, brief=True):
            values = signs(case, 0, 0)
            assert set(np.unique(values)) == {-1.0, 1.0}
            same = (values == 1).all(0)
            assert same.any()
            assert np.abs(values[:, ~same].sum(0)).max() <= 2


def test_a_sum_of_weights_with_one_more_key_is_refused():
    for case in asked(bucket(), 5, brief=True):
        counted = Counted(case, ())
        got, n = answered(counted.reference, case), case.workload.kv_len
        assert "counted once" in counted.fault(got * (n / (n + 1)))


def test_a_verdict_counts_at_every_residue_modulo_64():
    lengths = {case.workload.kv_len for case in asked(bucket(kv_len=1024), 0)}
    assert {n % 64 for n in lengths} == set(range(64))
    assert min(lengths) > 512
    assert {c.workload.kv_len for c in asked(bucket(), 0)} == set(range(65, 129))
    assert len(list(asked(bucket(), 0, brief=True))) == 8


def test_a_hidden_row_is_the_mean_of_its_heaviest_keys():
    """Those that infinities hide are none of them."""
    case = next(cases(bucket("additive", 8, 64, dtype="float32"), 0)).beside()
    b, _, i = np.argwhere(case.dead_rows())[0]
    row, mask = case.values[b, 0], case.mask[b, 0, i]
    assert np.isinf(mask).any()
    assert not np.isinf(mask).all()
    right = row[np.isfinite(mask)].mean(0)
    inputs = case.upload()
    counted = Counted(case, case.call(inputs.queries, inputs.keys))
    got = answered(counted.reference, case)
    for fine in (np.zeros_like(right), right):
        got[b, 0, i] = fine
        assert counted.fault(got) == ""
    for wrong in (row.mean(0), row[np.isinf(mask)].mean(0), right * 32 / 33, right + 1 / 64):
        got[b, 0, i] = wrong
        assert "every key masked" in counted.fault(got)

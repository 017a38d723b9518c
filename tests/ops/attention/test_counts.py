"""Counted keys: the answer is exact, and one key more or less is refused at any length."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from wrong_kernels import bucket

from mlx_lm_openevolve.gate.correctness import passes
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.reference.inputs import counts
from mlx_lm_openevolve.ops.attention.reference.question import CountQuestion

LATENT = bucket(
    "additive", kv_len=64, latent=True, q_heads=4, kv_heads=1, head_dim=512, v_head_dim=512
)
BUCKETS = (
    *(bucket(mask, 4, 256, dtype=d) for mask in ("none", "bool") for d in ("bfloat16", "float16")),
    *(bucket("causal", 8, 64, sinks=True), bucket("additive", 8, 64, sinks=True)),
    *(bucket(kv_bits=4, kv_group=32), bucket("bool", kv_bits=8, kv_group=64), LATENT),
)


@pytest.mark.parametrize("on", BUCKETS, ids=lambda on: on.slug)
def test_attention_itself_passes_and_one_key_less_does_not(on):
    asked = [CountQuestion(case) for case in counts(on, 3)]
    assert passes(OP.questions.correct.build, asked).reason == ""
    for question in asked:
        case = question.case
        shape = (on.kv_heads, case.workload.v_head_dim)
        last = np.ones(shape) if on.kv_bits else _last(question)
        lost = -last.repeat(on.group, 0)[:, None] / np.maximum(question._count, 1)
        worst, average = question.error((question._exact + lost).astype(np.float32))
        assert worst > question.limits[0]
        assert average > question.limits[1]


def _last(question):
    """The last key's value [Hkv, Dv] of the first sequence."""
    values = np.array(question.inputs.values.astype(mx.float32))
    assert set(np.unique(values)) == {-1.0, 1.0}
    return values[0, :, -1]


def test_a_verdict_counts_at_every_residue_modulo_64():
    lengths = {case.workload.kv_len for case in counts(bucket(kv_len=1024), 0)}
    assert {n % 64 for n in lengths} == set(range(64))
    assert min(lengths) > 512
    assert {c.workload.kv_len for c in counts(bucket(), 0)} == set(range(65, 129))
    assert len(list(counts(bucket(), 0, brief=True))) == 2
    for case in counts(bucket(kv_bits=4, kv_group=32), 0, brief=True):
        assert set(np.unique(case.values.decode(1, 1))) == {-1.0, 1.0}

"""The gate must say no to every known-wrong implementation, for every kind of workload."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from samples import questions

from mlx_lm_openevolve.gate.correctness import Calls, passes, try_mutants
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.mutants import MUTANTS, applicable, correct
from mlx_lm_openevolve.ops.attention.reference import case, sdpa
from mlx_lm_openevolve.ops.attention.reference.question import AttentionQuestion as prepare
from mlx_lm_openevolve.ops.attention.workload import DTYPES, MASKS, Bucket, Workload


def workload(dtype: str, mask: str, **fields: object) -> Workload:
    shape = {"batch": 8, "q_heads": 16, "kv_heads": 4, "q_len": 8, "kv_len": 4096}
    shape |= {"head_dim": 128, "v_head_dim": 128, "sinks": True}
    return Workload(**{**shape, "dtype": dtype, "mask": mask, **fields})


def test_there_are_enough_and_their_names_differ():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.breaks for mutant in MUTANTS)


# Of every kind of mask one dtype, of every dtype a mask; the other settings are slow.
IN_CI = {("float32", "none"), ("float16", "bool"), ("bfloat16", "additive"), ("float32", "causal")}
each_setting = pytest.mark.parametrize(
    ("dtype", "mask"),
    [
        pytest.param(*setting, marks=[] if setting in IN_CI else pytest.mark.slow)
        for setting in itertools.product(DTYPES, MASKS)
    ],
)


@each_setting
def test_every_mutant_is_killed(dtype, mask):
    small = OP.questions.proxy(workload(dtype, mask))
    result = try_mutants(small, questions(small, 0))
    assert result.survivors == ()
    assert result.killed == result.of >= 40


@pytest.mark.parametrize(
    ("dtype", "mask"), list(itertools.product(DTYPES, ("none", "bool", "additive")))
)
def test_every_mutant_is_killed_when_decoding_one_sequence(dtype, mask):
    small = OP.questions.proxy(workload(dtype, mask, batch=1, q_len=1, sinks=False))
    result = try_mutants(small, questions(small, 0))
    assert result.survivors == ()
    assert result.of >= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mask", "q_len", "seed"),
    list(itertools.product(DTYPES, MASKS, (1, 8, 32, 2048), range(2))),
)
def test_every_mutant_is_killed_in_every_setting(dtype, mask, q_len, seed):
    if mask == "causal" and q_len == 1:
        pytest.skip("causal at one query is named none")
    for batch, (heads, group), dims, sinks in itertools.product(
        (1, 2), ((1, 8), (2, 1), (2, 4)), ((64, 64), (192, 128)), (False, True)
    ):
        small = OP.questions.proxy(
            workload(
                dtype,
                mask,
                batch=batch,
                q_len=q_len,
                kv_heads=heads,
                q_heads=heads * group,
                head_dim=dims[0],
                v_head_dim=dims[1],
                sinks=sinks,
            )
        )
        result = try_mutants(small, questions(small, seed))
        assert result.survivors == (), small.slug


def asked_for_first() -> list[Bucket]:
    """The proxies of what is asked for most, of the source mutants' buckets, and those with the
    fewest rows: one query head."""
    few = (
        Bucket(1, 1, 1, q_len, 2048, 64, 64, dtype, mask, sinks)
        for q_len, dtype, mask, sinks in itertools.product(
            (1, 8, 2048), DTYPES, MASKS, (False, True)
        )
        if (q_len, mask) != (1, "causal")
    )
    matrix = (bucket for _, bucket, _ in OP.questions.matrix())
    found = map(OP.questions.proxy, (*matrix, *OP.questions.usual, *few))
    return list(dict.fromkeys(found))


def survivors(bucket: Bucket, seed: int) -> tuple[str, ...]:
    """The mutants that live through a brief verdict's questions."""
    brief = [made() for made in OP.questions.cases(bucket, seed, brief=True)]
    return try_mutants(bucket, brief).survivors


DRAWN = random.Random(17).sample([*itertools.product(asked_for_first(), range(4))], 6)


@pytest.mark.parametrize(
    ("bucket", "seed"),
    [
        # The last key of a single row, in a length that one weak question had; light keys behind
        # a mask; a sum of few latent keys.
        (Bucket(1, 1, 1, 2048, 64, 64, 64, "float16", "additive"), 0),
        (Bucket(1, 1, 1, 1, 128, 64, 64, "bfloat16", "additive"), 1),
        (Bucket(2, 8, 2, 8, 128, 64, 64, "bfloat16", "additive", kv_bits=4, kv_group=32), 1),
        (Bucket(1, 16, 1, 1, 128, 512, 512, "bfloat16", "additive", latent=True), 0),
        (Bucket(2, 16, 1, 8, 128, 512, 512, "float16", "none", latent=True), 0),
        *DRAWN,
    ],
    ids=lambda value: value.slug if isinstance(value, Bucket) else str(value),
)
def test_every_mutant_is_killed_by_few_questions(bucket, seed):
    assert survivors(bucket, seed) == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_mutant_is_killed_by_few_questions_wherever_asked(seed):
    for bucket in asked_for_first():
        assert survivors(bucket, seed) == (), bucket.slug


def test_a_mutant_is_left_out_by_its_predicate_alone():
    everywhere = {m.name for m in applicable(workload("bfloat16", "additive"))}
    alone = {m.name for m in applicable(workload("bfloat16", "none", batch=1, sinks=False))}
    assert {"key-batch-stride-zero", "mask-ignored", "sinks-ignored"} <= everywhere - alone
    assert "last-key-lost" in alone
    settings = itertools.product(DTYPES, MASKS, (1, 8))
    asked = [workload(d, mask, q_len=n) for d, mask, n in settings]
    asked.append(replace(asked[0], kv_bits=4, kv_group=32, sinks=False))
    asked.append(workload("bfloat16", "additive", sinks=False))
    named = {m.name for w in asked for m in applicable(w)}
    assert named == {m.name for m in MUTANTS}


def test_weak_questions_let_mutants_live_and_name_them():
    small = OP.questions.proxy(workload("bfloat16", "none", sinks=False))
    weak = prepare(case("large", small, 0))
    weak.other_fault = lambda got: ""  # no key is counted
    result = try_mutants(small, [weak])
    assert {"last-key-lost", "scale-assumed"} <= set(result.survivors)
    assert f"{len(result.survivors)} of {result.of} known-wrong kernels" in result.reason
    assert result.killed == result.of - len(result.survivors)


def test_questions_that_fail_a_correct_implementation_prove_nothing():
    small = OP.questions.proxy(workload("float32", "none", sinks=False))
    question = prepare(case("peaked", small, 0))
    question.limits = (0.0, 0.0)
    assert "not even a correct implementation" in try_mutants(small, [question]).reason


@pytest.mark.parametrize(
    ("bits", "group", "dtype", "mask"),
    [  # two masks of each packing in CI
        pytest.param(*packing, mask, marks=[] if (j < 2) == (i == 0) else pytest.mark.slow)
        for i, packing in enumerate([(4, 64, "bfloat16"), (8, 32, "float16")])
        for j, mask in enumerate(MASKS)
    ],
)
def test_every_mutant_of_a_quantised_cache_is_killed(bits, group, dtype, mask):
    packed = {"kv_bits": bits, "kv_group": group, "sinks": False}
    small = OP.questions.proxy(workload(dtype, mask, **packed))
    result = try_mutants(small, questions(small, 0))
    assert result.survivors == ()
    assert result.killed >= 60
    assert any("scales" in m.name for m in applicable(small))


@pytest.mark.parametrize("mask", ["none", "additive"])
def test_every_mutant_of_latent_attention_is_killed(mask):
    shape = {"q_heads": 4, "kv_heads": 1, "head_dim": 512, "v_head_dim": 512, "sinks": False}
    small = OP.questions.proxy(workload("bfloat16", mask, latent=True, **shape))
    result = try_mutants(small, questions(small, 0))
    assert result.survivors == ()
    assert result.killed >= 40


@each_setting
def test_right_implementations_pass(dtype, mask):
    small = OP.questions.proxy(workload(dtype, mask))
    asked = questions(small, 1)
    assert passes(correct.build, asked).reason == ""
    outcome = passes(sdpa, asked)
    assert outcome.reason == ""
    assert 0 < outcome.margin <= 1


def test_what_a_call_raises_is_its_outcome():
    def build(exact):
        def call(*args):
            raise RuntimeError("no such kernel\nsecond line")

        return call

    question = prepare(case("peaked", OP.questions.proxy(workload("float32", "none")), 0))
    reason = Calls(build)(question).reason
    assert "RuntimeError: no such kernel" in reason
    assert "second line" not in reason

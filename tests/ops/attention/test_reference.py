"""The float64 reference and the inputs that make mistakes visible."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_openevolve.ops.attention.reference import (
    attention,
    case,
    cases,
    decode,
    encode,
    mask,
    sdpa,
)
from mlx_lm_openevolve.ops.attention.reference.plans import plans
from mlx_lm_openevolve.ops.attention.reference.question import AttentionQuestion
from mlx_lm_openevolve.ops.attention.workload import DTYPES, MASKS, Workload


def bucket(mask: str = "none", **fields: object) -> Workload:
    shape = {"batch": 4, "q_heads": 4, "kv_heads": 2, "q_len": 8, "kv_len": 64}
    return Workload(
        **{**shape, "head_dim": 64, "v_head_dim": 64, "dtype": "bfloat16", "mask": mask, **fields}
    )


def test_encode_rounds_as_mlx_does():
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 1e3
    x = np.concatenate([x, np.float32([0.0, -0.0, 1e38, -3.3e38, 1e-40, np.inf, np.nan])])
    for dtype in DTYPES:
        with np.errstate(over="ignore"):
            ours = decode(encode(x, dtype), dtype)
        theirs = np.array(mx.array(x).astype(getattr(mx, dtype)).astype(mx.float32))
        normal = np.abs(x) > 1e-37  # MLX may flush the rest to zero
        np.testing.assert_array_equal(ours[normal], theirs[normal])


def test_attention_is_softmax_by_the_book():
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((2, 3, 8)), rng.standard_normal((5, 8)), rng.random((5, 4)) - 0.5
    seen = rng.random((3, 5)) < 0.6
    seen[:, 0] = True
    sinks = np.array([0.3, -1.0])
    out, mass, largest = attention(q, k, v, 0.7, seen, sinks)
    for g, r in np.ndindex(2, 3):
        e = [np.exp(0.7 * q[g, r] @ k[j]) if seen[r, j] else 0.0 for j in range(5)]
        total = sum(e) + np.exp(sinks[g])
        np.testing.assert_allclose(out[g, r], sum(e[j] * v[j] for j in range(5)) / total)
        np.testing.assert_allclose(mass[g, r], sum(e[j] * abs(v[j]) for j in range(5)) / total)
    assert largest == pytest.approx(np.abs(0.7 * q @ k.T).max())


def test_a_fully_masked_row_spreads_evenly_and_with_a_sink_is_zero():
    q, k, v = np.ones((1, 1, 4)), np.eye(4), np.arange(8.0).reshape(4, 2)
    hidden = np.zeros((1, 4), np.bool_)
    np.testing.assert_allclose(attention(q, k, v, 1.0, hidden)[0][0, 0], v.mean(0))
    np.testing.assert_array_equal(attention(q, k, v, 1.0, hidden, np.zeros(1))[0], 0)


# A lost key is seen in float32 alone: in CI that has all bits, the others have some.
BITS = {"float32": (2, 3, 4, 6, 8), "bfloat16": (3, 4), "float16": (2, 8)}


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [
        pytest.param(bits, dtype, marks=[] if bits in BITS[dtype] else pytest.mark.slow)
        for bits, dtype in itertools.product(BITS["float32"], DTYPES)
    ],
)
def test_the_true_mean_of_values_that_are_all_hidden_is_known(bits, dtype):
    """Whatever their bits: a quantised zero is a scale and a bias that all but cancel."""
    asked = bucket("bool", batch=2, q_heads=2, dtype=dtype, kv_bits=bits, kv_group=32)
    made = [c for c in cases(asked, 1) if c.dead_rows().any()]
    assert len(made) > 3
    for c in made:
        question, heads = AttentionQuestion(c), range(c.workload.kv_heads)
        rows = [[c.values.decode(b, h) for h in heads] for b in range(c.workload.batch)]
        values = np.array(rows)[:, :, None]  # as many query heads as KV heads
        truth = np.broadcast_to(values.mean(3), question.shape).astype(np.float32)
        assert question.fault(np.where(c.dead_rows()[..., None], truth, question.answer)) == ""
        lost = np.broadcast_to(values[..., 1:, :].mean(3), question.shape).astype(np.float32)
        lost = np.where(c.dead_rows()[..., None], lost, question.answer)
        if dtype == "float32":  # in others one key of dozens is within rounding
            assert "every key masked" in question.fault(lost), "a key was left out of the mean"


@pytest.mark.parametrize(("mask", "q_len"), list(itertools.product(MASKS, (1, 8, 32, 2048))))
def test_cases_stay_in_their_bucket_and_reach_its_edges(mask, q_len):
    if mask == "causal" and q_len == 1:
        pytest.skip("causal at one query is named none")
    asked = bucket(mask, q_len=q_len)
    made = list(cases(asked, 0))
    assert {c.workload.bucket() for c in made} == {asked.bucket()}
    lengths = {c.workload.kv_len for c in made}
    assert 64 in lengths
    assert any(n % 2 for n in lengths)
    assert {c.workload.batch for c in made} == {3, 4}
    if q_len <= 32:
        assert any(c.workload.kv_len > c.workload.q_len for c in made)
    if 1 < q_len < 2048:
        assert len({c.workload.q_len for c in made}) == (7 if q_len == 8 else 24)
        assert len({c.workload.q_len for c in cases(asked, 0, brief=True)}) == 3


def test_decode_reaches_the_lower_edge():
    for brief in (False, True):
        assert {c.workload.kv_len for c in cases(bucket(q_len=1), 0, brief)} >= {33, 63, 64}


@pytest.mark.parametrize("seed", range(5))
def test_every_residue_of_a_length_is_asked(seed):
    lengths = {c.workload.kv_len for c in cases(bucket(q_len=1, kv_len=256), seed)}
    assert {n % 8 for n in lengths} >= {0, 1, 2, 3, 4, 5, 6, 7}
    for step in (16, 32, 64):
        assert any(n % step == 0 and n < 256 for n in lengths)
    few = {c.workload.kv_len for c in cases(bucket(q_len=1, kv_len=256), seed, brief=True)}
    assert len(few) >= 6
    assert {n % 2 for n in few - {256}} == {0, 1}


@pytest.mark.parametrize("seed", range(5))
def test_a_small_bucket_is_asked_at_every_batch_and_a_verify_at_an_odd_q_len(seed):
    asked = bucket("causal", q_len=8, batch=8)
    made, few = list(cases(asked, seed)), list(cases(asked, seed, brief=True))
    assert {c.workload.batch for c in made} == {5, 6, 7, 8}
    assert {c.workload.q_len for c in made} == set(range(2, 9))
    assert {2, 8} < {c.workload.q_len for c in few}
    assert any(c.workload.q_len % 2 for c in few)
    assert {5, 8} < {c.workload.batch for c in few}


def test_every_query_length_of_verify_steps_and_every_batch_is_asked():
    for seed in range(8):
        asked = plans(bucket("none", q_len=1, batch=32), seed, brief=False)
        assert {w.batch for w, plan in asked if plan.kind != "large"} == set(range(17, 33))
        asked = plans(bucket("causal", q_len=32, batch=1), seed, brief=False)
        assert {w.q_len for w, plan in asked if plan.kind != "large"} == set(range(9, 33))


SHOWS = ("needles", "peaked", "crowd", "even")  # what a wrong scale or a lost key shows in


@pytest.mark.parametrize("seed", range(20))
def test_every_verdict_asks_each_stratum(seed):
    asked = plans(bucket("additive", q_len=1, kv_len=128), seed, brief=False)
    assert {w.kv_len % 32 for w, plan in asked if plan.kind != "large"} == set(range(32))
    scales = [plan.scale / 0.125 for _, plan in asked if plan.kind in SHOWS]
    for low, high in (
        (-32, -8),
        (-8, -1.5),
        (0, 0.032),
        (0.031, 0.5),
        (1.5, 7.6),
        (8, 8),
        (12.8, 128),
    ):
        assert any(low <= scale <= high for scale in scales), (low, high)
    for low, high in ((0.65, 0.8), (0.9, 1), (1, 1.1), (1.2, 1.51)):
        assert any(low < scale < high for scale in scales if scale != 1), (low, high)
    few = plans(bucket("additive", q_len=1, kv_len=128), seed, brief=True)
    assert any(0.6 < plan.scale / 0.125 < 1.51 for _, plan in few[1:] if plan.kind in SHOWS)
    assert any(p.form == "ends" for _, p in asked if p.kind in SHOWS)
    for cases_asked, ways in ((asked, ("infinity", "lowest")), (few, ("infinity",))):
        tiles = {p.hidden for _, p in cases_asked if p.form == "blocks" and p.kind != "large"}
        assert tiles >= set(ways)
        for operand in ("keys", "values"):
            layouts = {getattr(plan, operand) for _, plan in cases_asked}
            assert layouts & {"columns", "apart"}


@pytest.mark.parametrize("form", ["blocks", "ends"])
@pytest.mark.parametrize("kv_len", [33, 64, 65, 100, 128, 129, 1000])
def test_whole_tiles_are_hidden_from_all_rows(form, kv_len):
    made = case("even", bucket("bool", q_len=1, kv_len=kv_len), 0, form=form, axes="BHL")
    seen = np.broadcast_to(made.mask, (4, 4, 1, kv_len))
    some, live = seen.any((0, 1, 2)), seen.any(-1)
    tile = max(n for n in (16, 32, 64, 128, 256) if 2 * n < kv_len)
    first, second, last = some[:tile], some[tile : 2 * tile], some[2 * tile :]
    if form == "blocks":
        assert not second.any()
        assert (seen[..., :tile].any(-1) == live).all()
        assert (seen[..., 2 * tile :].any(-1) == live).all()
    else:
        assert not first.any()
        assert not last.any()
        assert second.any()


def test_large_values_have_weights_of_two_sizes():
    made = case("large", bucket(q_len=1, batch=1, dtype="float16"), 0)
    k, q = decode(made.keys, "float16")[0, 0], decode(made.queries, "float16")[0, 0, 0]
    logits = np.unique(np.round(k @ q * made.scale, 6))
    assert len(logits) == 2
    assert 0.09 < abs(logits[1] - logits[0]) < 0.61


def strides(array):
    bits = array if array.dtype in (mx.float32, mx.bool_) else array.view(mx.uint16)
    return tuple(s // bits.itemsize for s in np.asarray(bits).strides)


@pytest.mark.parametrize(("brief", "seed"), list(itertools.product((True, False), range(3))))
def test_operands_lie_apart_from_each_other(brief, seed):
    made = [c.upload() for c in cases(bucket("bool", dtype="float32"), seed, brief)]
    keys, values = ([strides(getattr(x, name)) for x in made] for name in ("keys", "values"))
    assert keys[0] == values[0]  # as in a model's cache
    for axis in range(1, 4):
        assert any(k[axis] != v[axis] for k, v in zip(keys, values, strict=True))
    assert any(k[3] != 1 for k in keys)
    assert any(v[3] != 1 for v in values)
    queries = [strides(x.queries) for x in made if x.queries.shape[2] > 1]
    assert {q[1] > q[2] for q in queries} == {True, False}
    masks = [x.mask for x in made if x.mask.ndim > 1 and x.mask.shape[-2] > 1]
    assert any(strides(m)[-1] != 1 for m in masks)
    assert any(m.ndim < 4 for m in masks)


@pytest.mark.parametrize("brief", [True, False])
def test_scales_and_logits_reach_what_models_use(brief):
    made = list(cases(bucket(q_len=8), 1, brief))
    scales = [c.scale for c in made]
    assert min(scales) < 0 < min(abs(s) for s in scales if s) < 0.01
    assert brief or 0 in scales
    assert max(scales) > 1
    assert made[0].scale == 0.125
    logits = [c.reference().logit for c in made]
    assert max(logits) > 400
    assert min(logits) < 10


def test_light_keys_outweigh_a_heavy_one():
    made = case("crowd", bucket(q_len=1, batch=1, kv_len=2048), 0)
    k, v = (decode(x, "bfloat16")[0, 0] for x in (made.keys, made.values))
    scores = k @ decode(made.queries, "bfloat16")[0, 0, 0] * made.scale
    heavy = scores == scores.max()  # equal keys, so that most shares of the keys have one
    assert 4 <= heavy.sum() <= 8
    assert not v[heavy].any()
    weights = np.exp(scores - scores.max())
    assert np.sort(weights[~heavy])[-1] < 0.1
    assert weights[~heavy].sum() > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_additive_mask_hides_in_every_way_and_may_decide_alone(dtype):
    made = [
        decode(c.mask, dtype)
        for seed in range(2)
        for c in cases(bucket("additive", dtype=dtype), seed, brief=True)
    ]
    assert any(np.isneginf(m).any() for m in made)
    assert any((m == decode(encode(np.array([-1e4]), dtype), dtype)).any() for m in made)
    finite = [m[np.isfinite(m)] for m in made]
    assert any((m > 1000).any() for m in finite)
    assert any(((m < -1000) & (m > -9000)).any() for m in finite)


def test_masks_come_in_every_form_that_mlx_lm_passes():
    decode_shapes = {c.mask.shape for c in cases(bucket("bool", q_len=1), 0)}
    assert {len(shape) for shape in decode_shapes} == {1, 3, 4}
    assert {shape[1] for shape in decode_shapes if len(shape) == 4} == {1, 4}
    prefill = list(cases(bucket("additive", q_len=8), 0))
    assert {c.mask.ndim for c in prefill} == {2, 3, 4}
    for axis in range(4):
        assert {c.mask.shape[axis] == 1 for c in prefill if c.mask.ndim == 4} == {True, False}
    assert any(np.isneginf(decode(c.mask, "bfloat16")).any() for c in prefill)
    assert any((decode(c.mask, "bfloat16") < -3e38).any() for c in prefill)


@pytest.mark.parametrize("mask", ["bool", "additive"])
def test_some_rows_are_wholly_masked_and_most_are_not(mask):
    dead = [c.dead_rows() for c in cases(bucket(mask), 0)]
    assert any(rows.any() for rows in dead)
    assert all(rows.mean() < 0.5 for rows in dead)


@pytest.mark.parametrize("dtype", DTYPES)
def test_caches_are_slices_with_nan_around_them(dtype):
    made = case("peaked", bucket(dtype=dtype, kv_len=37), 0)
    inputs = made.upload()
    assert inputs.keys.shape == (4, 2, 37, 64)
    strides = np.asarray(inputs.keys.view(mx.uint16)).strides if dtype != "float32" else None
    assert strides is None or strides[1] > 37 * 64 * 2
    for buffer, view in zip(inputs.buffers[1:], (inputs.keys, inputs.values), strict=True):
        outside = buffer.size - view.size
        assert outside > 0
        assert int(mx.isnan(buffer).sum().item()) == outside
    assert not mx.isnan(inputs.keys).any().item()


def test_queries_are_transposed_views():
    queries = case("peaked", bucket(dtype="float32"), 0).upload().queries
    strides = np.asarray(queries).strides
    assert strides[1] < strides[2]


def test_a_seed_names_its_inputs_and_mlx_randomness_is_untouched():
    mx.random.seed(5)
    want = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(5)
    first, again, other = (list(cases(bucket("bool"), seed)) for seed in (0, 0, 1))
    for c in first:
        mx.eval(c.upload().keys)
    assert mx.random.uniform(shape=(4,)).tolist() == want
    assert all(np.array_equal(a.queries, b.queries) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.queries, b.queries) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("dtype", "mask"), list(itertools.product(DTYPES, MASKS)))
def test_sdpa_is_close_to_the_truth_and_wrong_answers_are_far(dtype, mask):
    for made in cases(bucket(mask, dtype=dtype, sinks=True), 3):
        x, truth = made.upload(), made.reference()
        call = sdpa(made.workload)
        out = call(x.queries, x.keys, x.values, x.scale, x.mask, x.sinks)
        right = np.array(out.astype(mx.float32))
        worst, average = truth.error(right)
        assert worst < (1e-4 if dtype == "float32" else 0.15)
        assert average <= worst
        assert truth.error(np.zeros_like(right))[0] > 0.3
        assert truth.error(np.full_like(right, np.nan)) == (np.inf, np.inf)


def test_needles_make_one_key_decide():
    made = case("needles", bucket(q_len=1, batch=1), 0)
    assert made.reference().error(np.zeros((1, 4, 1, 64)))[0] == pytest.approx(1, abs=1e-2)
    k, q = decode(made.keys, "bfloat16"), decode(made.queries, "bfloat16")
    scores = np.sort((q[0, 0, 0] @ k[0, 0].T) * made.scale)
    assert scores[-1] - scores[-3] > 4


def test_a_timed_mask_leaves_every_row_a_key():
    for kind, q_len in itertools.product(("bool", "additive"), (1, 8)):
        made = mask(bucket(kind, q_len=q_len), 0)
        seen = made if made.dtype == mx.bool_ else made > -1e4
        assert mx.any(seen, axis=-1).all().item()
    assert mask(bucket("causal"), 0) is None


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 64), (4, 128)])
def test_quantised_caches_lie_at_whole_16_bytes_and_elsewhere(bits: int, group: int) -> None:
    # The fast paths of kernels are for the former, which is what mlx-lm's caches are.
    w = Workload(
        *(1, 4, 2, 1, 256, 128, 128, "bfloat16"),
        kv_bits=bits,
        kv_group=group,
    )

    def aligned(x: np.ndarray) -> bool:
        start = x.ctypes.data - np.asarray(x.base).ctypes.data
        return start % 16 == 0 and x.strides[1] % 16 == 0 and start >= x.strides[2]

    found = [
        {aligned(part) for x in (case.keys, case.values) for part in (x.words, x.scales, x.biases)}
        for case in cases(w, 0)
    ]
    assert {True} in found
    assert any(False in kinds for kinds in found)

"""Timing: what a comparison says about given times, and what a chain really runs.

Nothing here asserts how long anything takes: arms with invented clocks stand for fast and slow.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.ops import DTYPES
from mlx_lm_openevolve.ops.attention.reference import mask, sdpa, timing_inputs
from mlx_lm_openevolve.ops.attention.reference.baseline import answer, floats
from mlx_lm_openevolve.ops.attention.reference.timing_inputs import STEP, AttentionTimingInputs
from mlx_lm_openevolve.ops.attention.workload import Workload

SMALL = Workload(1, 4, 2, 1, 48, 64, 64, "float32")


class Clocked:
    """An arm that takes as long as it is told to, with noise and a drift shared by all."""

    calls = 0

    def __init__(self, seconds: float, noise: float, seed: int = 0) -> None:
        self.base, self.noise, self.rng = seconds, noise, np.random.default_rng(seed)

    def seconds(self, calls: int) -> float:
        Clocked.calls += 1
        drift = 1 + 0.3 * np.sin(Clocked.calls / 40)
        return self.base * drift * (1 + self.noise * self.rng.random())


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_the_interval_holds_the_ratio_through_drift(factor):
    found = timing.paired(Clocked(factor, 0.05), Clocked(1.0, 0.05, 1), 1e-3, 1.0, 0)
    assert found is not None
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(factor, rel=0.03)
    assert found.high - found.low < 0.1 * factor


def test_noise_widens_the_interval():
    quiet = timing.paired(Clocked(1.0, 0.01), Clocked(1.0, 0.01, 1), 1e-3, 1.0, 0)
    loud = timing.paired(Clocked(1.0, 1.0), Clocked(1.0, 1.0, 1), 1e-3, 1.0, 0)
    assert loud.high - loud.low > 5 * (quiet.high - quiet.low)
    assert loud.low < 1 < loud.high


def test_too_little_time_gives_no_comparison():
    assert timing.paired(Clocked(1.0, 0.1), Clocked(1.0, 0.1), 1.0, 10.0, 0) is None


def test_evidence_holds_both_arms():
    pair = timing.paired(Clocked(1.2, 0.1), Clocked(1.0, 0.1), 1e-3, 0.2, 0)
    found = pair.to_json()
    for arm in ("baseline", "candidate"):
        record = found[arm]
        assert {"mean", "std", "min", "max", "trials"} == set(record)
        assert record["trials"] == len(pair.samples()[arm]) >= 2 * timing.MIN_BLOCKS
        assert record["min"] <= record["mean"] <= record["max"]


def test_samples_come_as_a_b_b_a_or_b_a_a_b_with_a_gap_before_each_block(monkeypatch):
    order, gaps = [], []
    monkeypatch.setattr(timing.time, "sleep", gaps.append)

    class Named:
        def __init__(self, name):
            self.name = name

        def seconds(self, calls):
            order.append(self.name)
            return 1e-3

    found = timing.paired(Named("a"), Named("b"), 1e-3, 0.5, 0)
    text = "".join(order)
    blocks = [text[i : i + 4] for i in range(0, len(text), 4)]
    assert set(blocks) == {"abba", "baab"}
    assert len(gaps) == len(set(gaps)) == len(blocks) == len(found.a) / 2
    assert 0 <= min(gaps) < max(gaps) < timing.GAP_SECONDS
    order.clear()
    timing.paired(Named("a"), Named("b"), 1e-3, 0.5, 1)
    assert "".join(order) != text


@pytest.mark.parametrize("dims", [(64, 64), (64, 32), (32, 64)])
def test_a_chain_feeds_each_result_to_the_next_call_and_cycles_the_caches(dims):
    w = replace(SMALL, head_dim=dims[0], v_head_dim=dims[1])
    inputs = AttentionTimingInputs(w, None, 4 * w.stored_bytes(), 1 << 28, 0)
    assert len(inputs.rest) >= 5
    seen = []
    real = sdpa(w, w.head_dim**-0.5)

    def call(queries, keys, values, scale, mask, sinks):
        out = real(queries, keys, values, scale, mask, sinks)
        seen.append((queries, keys, out))
        return out

    arm = timing.Arm(inputs, call, keep=1)
    assert arm.seconds(6) > 0
    for (_, keys, out), (queries, next_keys, _) in itertools.pairwise(seen):
        width = min(dims)
        assert mx.array_equal(queries[..., :width], out[..., :width]).item()
        assert not mx.array_equal(keys, next_keys).item()
    ((at, queries, out),) = arm.kept
    want = real(queries, *inputs.rest[at])
    assert mx.allclose(out, want, atol=1e-6).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_len": 2048},
        {"v_head_dim": 32},
        {"head_dim": 32},
        {"kv_bits": 4, "kv_group": 32},
        {"kv_heads": 1, "latent": True, "mask": "additive"},
        {"q_len": 16, "mask": "causal", "sinks": True},
        {"batch": 2, "mask": "bool"},
    ],
    ids=str,
)
def test_queries_keep_their_magnitude_and_logits_theirs(changes, dtype):
    w = replace(SMALL, dtype=dtype, **changes)
    inputs = AttentionTimingInputs(w, mask(w, 0), 0, 1 << 28, 0)
    state = inputs.first
    call, scale = inputs.baseline(), float(inputs.scale[0])
    for turn in range(24):
        keys = inputs.rest[turn % len(inputs.rest)][0]
        size = mx.sqrt(mx.square(state.astype(mx.float32)).mean(-1))
        assert 0.5 < float(mx.median(size)) < 2, turn
        plain = mx.repeat(floats(w, keys), w.group, axis=1).astype(mx.float32)
        logits = scale * state.astype(mx.float32) @ plain.swapaxes(-1, -2)
        assert float(mx.abs(logits).max()) < timing_inputs._LOGIT
        assert 1.5 < float(mx.median(mx.std(logits, axis=-1))) < 6, turn
        state = inputs.next(call(state, *inputs.rest[turn % len(inputs.rest)]))


def test_what_is_kept_for_a_check_is_drawn_from_all_that_is_timed():
    class Counting:
        first, rest = mx.array(0), [()]

        def next(self, out):
            return out

    kept = []
    for _ in range(30):
        arm = timing.Arm(Counting(), lambda state: state + 1, keep=2)
        for _ in range(8):
            arm.seconds(5)
        assert len(arm.kept) == 2
        kept += [int(out.item()) for _, _, out in arm.kept]
        assert all(out.item() == first.item() + 1 for _, first, out in arm.kept)
    # Of 60 fair draws from five places each is missed once in 140,000 times.
    assert set(kept) == {1, 2, 3, 4, 5}


def test_a_timed_result_of_another_shape_or_dtype_is_named():
    inputs = AttentionTimingInputs(SMALL, None, 0, 1 << 28, 0)
    out = inputs.baseline()(inputs.first, *inputs.rest[0])
    assert inputs.recheck(0, inputs.first, out) == ""
    assert "expected" in inputs.recheck(0, inputs.first, out[..., :1])
    assert "expected" in inputs.recheck(0, inputs.first, out.astype(mx.float16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0, 8])
def test_a_timed_result_may_err_as_rounding_does_and_no_more(dtype, bits):
    w = replace(SMALL, dtype=dtype, kv_bits=bits, kv_group=32 if bits else 0)
    inputs = AttentionTimingInputs(w, None, 0, 1 << 28, 0)
    out = answer(w, inputs.first, *inputs.rest[0][:2], float(inputs.scale[0]), None, None)
    eps = float(mx.finfo(inputs.first.dtype).eps)
    slip = mx.zeros_like(out).at[0, 1, 0, 5].add(1.0)
    for size, right in ((0.5 * eps, True), (40 * eps, dtype == "float32"), (400 * eps, False)):
        changed = (out + size * slip).astype(inputs.first.dtype)
        assert (inputs.recheck(0, inputs.first, changed) == "") == right, size


def test_caches_are_slices_beyond_the_last_level_cache():
    inputs = AttentionTimingInputs(SMALL, None, 1 << 20, 1 << 28, 0)
    assert len(inputs.rest) * SMALL.stored_bytes() > 1 << 20
    strides = np.asarray(inputs.rest[0][0]).strides
    assert strides[1] > 48 * 64 * 4
    assert inputs.bytes > SMALL.stored_bytes()


def test_a_bench_that_does_not_fit_says_what_it_needs():
    with pytest.raises(MemoryError, match="MiB"):
        AttentionTimingInputs(replace(SMALL, kv_len=4096), None, 1 << 20, 1 << 20, 0)


def test_masks_and_sinks_are_timed_too():
    w = replace(SMALL, mask="bool", sinks=True, batch=2)
    inputs = AttentionTimingInputs(w, mask(w, 0), 0, 1 << 28, 0)
    assert timing.Arm(inputs, sdpa(w)).seconds(2) > 0


def test_bandwidth_is_positive_and_kept():
    assert timing.bandwidth(1 << 20) == timing.bandwidth(1 << 20) > 0


def test_caches_grow_as_mlx_lms_do() -> None:
    from mlx_lm.models.cache import KVCache

    assert KVCache.step == STEP


def test_short_chains_make_more_blocks_of_long_calls() -> None:
    assert timing.size(5e-3, 20.0)[1] < 20
    calls, blocks = timing.size(5e-3, 20.0, chain=4, most=2000)
    assert calls == 4
    assert 200 < blocks < 250
    assert timing.size(5e-3, 20.0, chain=4, most=100) == (4, 100)

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
from mlx_lm_openevolve.ops.attention.reference import mask, sdpa
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

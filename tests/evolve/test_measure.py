"""Measuring: real timing of stand-ins for a kernel, and what cannot be a measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import evolve_kernels
import mlx.core as mx
import pytest

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.evolve import measure
from mlx_lm_openevolve.evolve.evaluation import Measurement, Request
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.ops.attention.reference import sdpa, timing_inputs
from mlx_lm_openevolve.ops.attention.workload import Bucket

W = Bucket(1, 4, 2, 1, 256, 64, 64, "float32")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Measurement]]:
    """Measure `make(workload) -> call` as if a backend had built it from a kernel."""
    measure._setups.clear()
    # A cache as small as this lies in the processor's own: no roof is known for that.
    monkeypatch.setattr(timing, "bandwidth", lambda cache: 1e15)

    def run(
        make: Any, best: float = 0.0, workload: Bucket = W, sdpa_seconds: float = 0.0
    ) -> Measurement:
        module = SimpleNamespace(build=lambda kernel, params, exact: make(exact))
        monkeypatch.setattr(backends, "get", lambda name: module)
        times = {"best": best, "seconds": 0.4, "sdpa_seconds": sdpa_seconds}
        request = Request("measure", workload.slug, 0, backend="host", **times)
        return measure.measure(evolve_kernels.kernel(), {"step": 1}, request)

    yield run
    measure._setups.clear()


def test_sdpa_itself_is_correct_and_no_faster_than_itself(stand_in: Any) -> None:
    found = stand_in(sdpa)
    assert found.cause == ""
    assert 0.3 < found.low <= found.ratio <= found.high < 3
    assert found.margin > 0
    assert found.seconds > 0
    assert not found.aborted


def test_a_candidate_twice_as_slow_as_the_best_is_cut_short(stand_in: Any) -> None:
    found = stand_in(sdpa, best=1e-9)
    assert found.cause == ""
    assert found.aborted
    assert found.trials == 2 * timing.MIN_BLOCKS


def remembers(exact: Bucket) -> Callable[..., mx.array]:
    """A result of another call, handed out again."""
    seen: list[mx.array] = []

    def call(*arguments: Any) -> mx.array:
        if not seen:
            seen.append(sdpa(exact)(*arguments))
        return seen[0]

    return call


def first_then_queries(exact: Bucket) -> Callable[..., mx.array]:
    """Right while it is examined, the queries once it is timed."""
    count = [0]

    def call(queries: mx.array, *rest: Any) -> mx.array:
        count[0] += 1
        return sdpa(exact)(queries, *rest) if count[0] <= 12 else queries

    return call


@pytest.mark.parametrize(
    "make",
    [
        remembers,
        first_then_queries,
        lambda exact: lambda queries, *rest: queries,
        lambda exact: lambda queries, *rest: mx.zeros_like(queries),
        lambda exact: lambda queries, keys, *rest: mx.zeros((1, 1, 1, 64)),
        lambda exact: sdpa(exact) if exact.kv_len == W.kv_len else lambda q, *rest: q,
    ],
    ids=["replay", "right when examined", "no-op", "zeros", "broadcasts", "the benched shape"],
)
def test_cheats_in_a_call_are_wrong(stand_in: Any, make: Any) -> None:
    found = stand_in(make)
    assert found.cause == "wrong", found
    assert found.finding


def test_a_right_result_is_no_fault_where_sdpa_is_wrong(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        timing_inputs, "answer", lambda w, queries, *rest: 2 * sdpa(w)(queries, *rest)
    )
    assert stand_in(sdpa).cause == ""


def test_what_was_timed_over_a_quantised_cache_is_checked_again(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "static_rules", lambda kernel, params, workload: "")
    packed = replace(W, kv_bits=8, kv_group=64)
    assert stand_in(sdpa, workload=packed).cause == ""
    found = stand_in(first_then_queries, workload=packed)
    assert (found.cause, "a timed result" in found.finding) == ("wrong", True)


def test_a_time_below_the_roofline_is_a_fault_of_the_measurement(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "bandwidth", lambda cache: 1.0)  # a byte a second
    assert stand_in(sdpa).cause == "roofline"


def test_a_baseline_that_moved_is_a_fault_of_the_measurement(stand_in: Any) -> None:
    found = stand_in(sdpa)
    assert stand_in(sdpa, sdpa_seconds=found.seconds / 40).cause == "unsteady"


def test_the_baseline_has_a_floor_below_it() -> None:
    measure._setups.clear()
    found = measure.baseline(W, "host", 0)
    assert found.floor > 0
    assert found.seconds > W.moved_bytes() / (10 * found.bandwidth)
    assert found.bound in ("memory", "compute", "launch")
    measure._setups.clear()


def test_floors_and_flops() -> None:
    decode = Bucket(1, 32, 8, 1, 4096, 128, 128, "bfloat16")
    assert decode.flops() == 2 * 32 * 4096 * 256
    assert decode.stored_bytes() < decode.moved_bytes() < 1.01 * decode.stored_bytes()
    assert measure.floor(decode, 1e12, 1e15, 1e-6) == (
        decode.moved_bytes() / 1e12,
        "memory",
    )
    assert measure.floor(decode, 1e15, 1e18, 1e-6)[1] == "launch"
    assert measure.floor(decode, 1e15, 1e9, 1e-6)[1] == "compute"


def test_the_gpu_is_left_without_cached_memory() -> None:
    """What long chains leave in MLX's cache once filled the GPU: later baselines came out slow."""
    owner = replace(detect("host"), backend="cuda", slug="test-of-cached-memory")
    with measure.gpu(owner):
        mx.eval(mx.ones((1 << 20,)))
        assert mx.get_cache_memory() > 0
    assert mx.get_cache_memory() == 0


def test_the_gpu_has_one_owner_at_a_time() -> None:
    owner = replace(detect("host"), backend="cuda", slug="test-of-one-owner")
    held: list[str] = []

    def other() -> None:
        with measure.gpu(owner):
            held.append("other")

    with measure.gpu(owner):
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        held.append("first")
    waiting.join(30)
    assert held == ["first", "other"]

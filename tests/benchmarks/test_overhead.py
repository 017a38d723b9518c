"""benchmarks/overhead.py: what the bare calls are, and that the arms are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import overhead
import pytest

WORKLOAD = replace(overhead.WORKLOADS["decode"], kv_len=2048)


def test_bare_calls_are_the_launches_of_the_call_with_its_arguments() -> None:
    asked: list[tuple[list[int], int]] = []

    def made(**kernel: str) -> object:
        def function(inputs: list[mx.array], number: int) -> list[mx.array]:
            asked.append(([x.size for x in inputs], number))
            return [mx.zeros((number,))]

        return function

    recorder = overhead.Recorder.__new__(overhead.Recorder)
    recorder._make, recorder.calls = made, []
    first, second = recorder(name="a"), recorder(name="b")
    (partial,) = first(inputs=[mx.zeros((3,)), mx.zeros((4,))], number=5)
    second(inputs=[mx.zeros((2,)), partial], number=7)
    before = list(asked)
    asked.clear()
    assert recorder.bare()().size == 7
    assert asked == before == [([3, 4], 5), ([2, 5], 7)]


def test_a_served_call_is_compared_with_its_own_launches() -> None:
    found = overhead.served(WORKLOAD, "metal", 3)
    assert found["kernel"] == "gqa_decode"
    assert found["launches"] == 2
    assert min(found[arm]["median"] for arm in ("served", "bare")) > 0
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]


def test_what_a_fallback_adds_is_the_wrapper() -> None:
    found = overhead.falls_back(WORKLOAD, overhead.nothing, 3)
    assert found["low"] <= found["median"] <= found["high"]


def test_the_dearer_arm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    monkeypatch.setattr(overhead.time, "thread_time", lambda: clock[0])
    found = overhead.pairs(takes(1e-6), takes(3e-6), 3)
    assert [pytest.approx((1, 3))] * 3 == found
    assert overhead.median([3.0, 1.0, 2.0])["median"] == pytest.approx(2)


@pytest.mark.parametrize("name", overhead.PRODUCTS)
def test_a_layer_is_measured_falling_back_and_served(name: str) -> None:
    product = replace(overhead.PRODUCTS[name], n=64, k=128)
    stock = nn.QuantizedLinear.__call__
    found = overhead.layer_falls_back(product, 3)
    assert found["adds"]["low"] <= found["adds"]["median"] <= found["adds"]["high"]
    # Of one unit; how long it takes, a busy machine cannot say.
    assert abs(found["adds"]["median"]) < 50 * found["stock"]["median"]
    found = overhead.layer_served(product, "metal", 3)
    assert found["kernel"] == "quantized_rows"
    assert min(found[arm]["median"] for arm in ("served", "bare")) > 0
    assert nn.QuantizedLinear.__call__ is stock

"""What Op gives a family that says nothing itself: here one of squares, without a kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve.gate.correctness import try_mutants
from mlx_lm_openevolve.ops.base import ON_CPU, Op


class Squares(Op[Any, Any]):
    name = "squares"

    def describe(self, x: mx.array) -> Any:
        return {"odd": {}["shape"]} if x.ndim == 3 else f"{x.ndim} axes"

    def arguments(self, x: mx.array) -> tuple[Any, ...]:
        return (x,)

    parse = inputs = bind = trial = questions = search = None  # type: ignore[assignment]


class Routes:
    def __init__(self, **route: Any) -> None:
        served = {"call": None, "substitute": None, "hits": 0, "fallbacks": 0} | route
        self.one, self.routes, self.off = SimpleNamespace(**served), {}, list[str]()
        self.reasons: list[str] = []
        self.on_cpu = lambda: False

    def route(self, key: Any, described: Any, arrays: Any) -> Any:
        return self.one

    def refuse(self, reason: str) -> None:
        self.reasons.append(reason)


def original(x: mx.array) -> mx.array:
    if x.ndim == 3:
        raise IndexError("three axes")
    return x * x


def test_a_kernel_a_substitute_and_the_original_serve_in_this_order() -> None:
    two = mx.array([2.0])
    for route, want in (
        ({"call": lambda x: x + 5, "substitute": lambda x: x + 6}, 7.0),
        ({"substitute": lambda x: x + 6}, 8.0),
        ({}, 4.0),
    ):
        routes = Routes(**route)
        assert Squares().wrap(original, routes)(two).item() == want
        assert (routes.one.hits, routes.one.fallbacks) == ((1, 0) if "call" in route else (0, 1))


def test_what_reading_a_call_raises_is_the_originals_to_judge() -> None:
    routes = Routes()
    with pytest.raises(IndexError, match="three axes"):
        Squares().wrap(original, routes)(mx.zeros((1, 1, 1)))
    assert routes.reasons == ["KeyError before the call"]


def test_switched_off_nothing_is_asked() -> None:
    routes = Routes(call=lambda x: x + 5)
    routes.off.append("gate")
    assert Squares().wrap(original, routes)(mx.array([2.0])).item() == 4.0


def test_on_the_cpu_the_original_serves_with_its_reason() -> None:
    routes = Routes(call=lambda x: x + 5)
    routes.on_cpu = lambda: True
    assert Squares().wrap(original, routes)(mx.array([2.0])).item() == 4.0
    assert routes.reasons == [ON_CPU]


def test_a_derivative_that_nobody_wrote_is_refused_and_not_zero() -> None:
    served = Squares().differentiable(None, lambda x: mx.stop_gradient(x) * 2)
    assert served(mx.array([3.0])).item() == 6.0
    with pytest.raises(ValueError, match="no derivative"):
        mx.grad(lambda x: served(x).sum())(mx.array([3.0]))


def test_a_gate_without_mutants_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm_openevolve.ops.attention import OP, Bucket

    bucket = Bucket(1, 4, 2, 1, 32, 64, 64, "float32")
    monkeypatch.setattr(type(OP.questions), "mutants", lambda questions, workload: [])
    monkeypatch.setattr("mlx_lm_openevolve.gate.correctness.passes", lambda *_: OUTCOME)
    trial = try_mutants(bucket, [])
    assert trial.of == 0
    assert "not one mutant" in trial.reason


OUTCOME = SimpleNamespace(reason="")

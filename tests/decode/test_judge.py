"""The gate for whole steps: right against float32, wrong layers told, and faster by the clock."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx_lm.models.llama as llama
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_lm_openevolve.decode import judge as gate
from mlx_lm_openevolve.decode.judge import MUTANTS, judge
from mlx_lm_openevolve.decode.split import Split
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import GateTimeout
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED, STEP, WAYS, Verdict
from mlx_lm_openevolve.runtime.planner import Planner
from mlx_lm_openevolve.tune.steps import decide_steps

HOST = detect("host")
GPU = replace(HOST, backend="cuda")


@pytest.fixture
def model() -> Any:
    return architectures.build("llama")


def wrong(*_: Any, **__: Any) -> None:
    raise AssertionError("not to be called")


@pytest.mark.parametrize(
    ("batch", "dtype", "way"), [(1, mx.bfloat16, ALL), (4, mx.float32, COMPILED)]
)
def test_compiled_steps_are_right_and_wrong_ones_are_told(
    batch: int, dtype: mx.Dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = architectures.build("llama", dtype)
    method = vars(llama.TransformerBlock)["__call__"]
    monkeypatch.setattr(timing, "paired", wrong)
    verdict = judge(model, batch, HOST, 5, way, length=16)
    assert verdict is not None
    assert (verdict.correct, verdict.faster) == (True, None)
    assert verdict.workload == slug(structure(model), batch)
    assert verdict.mutants == {"killed": len(MUTANTS), "of": len(MUTANTS), "survivors": []}
    assert verdict.kernel == way
    stock, compiled = verdict.errors["stock"], verdict.errors["compiled"]
    assert 0 < stock["logits"] < 0.1 or dtype == mx.float32
    assert compiled == stock if verdict.errors["same_bits"] else compiled
    assert verdict.errors["same_tokens"] == verdict.errors["tokens"] == 20
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert vars(llama.TransformerBlock)["__call__"] is method


def test_float32_is_float32_throughout() -> None:
    model = architectures.build("llama", mx.bfloat16)
    with gate.installed(gate.in_float32()):
        cache = make_prompt_cache(model)
        assert model(mx.array([[3]]), cache=cache).dtype == mx.float32
    assert {a.dtype for c in cache for a in gate._arrays(c.state)} == {mx.float32}
    assert model(mx.array([[3]])).dtype == mx.bfloat16


def test_what_errs_more_than_stock_is_rejected(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = Split.attend
    monkeypatch.setattr(Split, "attend", lambda self, *given: attend(self, *given) + 0.1)
    monkeypatch.setattr(timing, "paired", wrong)
    verdict = judge(model, 1, GPU, 5, length=16)
    assert verdict is not None
    assert not verdict.correct
    assert verdict.reason == "logits and caches are further from float32 than stock's own"


def test_a_wrong_layer_that_is_not_told_blocks_acceptance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = architectures.build("llama", mx.bfloat16)  # in float32 stock has no error to multiply
    monkeypatch.setattr(gate, "MULTIPLE", 1e9)
    monkeypatch.setattr(timing, "paired", wrong)
    verdict = judge(model, 1, GPU, 5, length=16)
    assert verdict is not None
    assert not verdict.correct
    assert verdict.mutants["survivors"] == list(MUTANTS)
    assert verdict.reason == "it cannot tell offset-one-off"


def test_a_model_none_of_whose_layers_is_compiled_has_no_verdict() -> None:
    assert judge(architectures.build("plamo"), 1, HOST, 5) is None


def pair(ratio: float, low: float, high: float) -> timing.Comparison:
    return timing.Comparison((2e-3,) * 4, (1e-3,) * 4, ratio, low, high)


@pytest.mark.parametrize(
    ("same", "found", "faster", "says"),
    [
        (pair(1, 0.99, 1.01), pair(1.3, 1.2, 1.4), True, "correct and faster: 1.300"),
        (pair(1, 0.99, 1.01), pair(1.03, 1.02, 1.04), False, "must be above 1.020"),
        (pair(1, 0.95, 1.25), pair(1.3, 1.2, 1.4), False, "must be above 1.250"),
        (pair(1.1, 1.05, 1.2), pair(1.3, 1.2, 1.4), None, "the clock is unsteady"),
        (None, pair(1.3, 1.2, 1.4), None, "hold too few steps"),
    ],
)
def test_what_the_clock_says_decides(
    model: Any, monkeypatch: pytest.MonkeyPatch, same: Any, found: Any, faster: Any, says: str
) -> None:
    arms: list[Any] = []

    def paired(a: Any, b: Any, *_: Any, **__: Any) -> Any:
        arms.append((a, b))
        return same if a is b else found

    monkeypatch.setattr(timing, "paired", paired)
    monkeypatch.setattr(gate, "_right", lambda *_: ({}, {}, ""))  # asked above
    if faster is None:
        with pytest.raises(GateTimeout, match=says):
            judge(model, 1, GPU, 1, length=16)
        return
    verdict = judge(model, 1, GPU, 1, length=16)
    assert verdict is not None
    assert (verdict.correct, verdict.faster) == (True, faster)
    assert verdict.accepted is faster
    assert says in verdict.reason
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_the_arms_are_stock_and_compiled_and_the_cache_stays(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps({slug(structure(model), 1): ALL})
    with gate.installed([steps]):
        cache = make_prompt_cache(model)
        token = gate._prefilled(model, cache, mx.array([[1, 2, 3]]))
        seen: list[bool] = []
        attend = Split.attend

        def split(self: Split, *given: Any) -> Any:
            seen.append(True)
            return attend(self, *given)

        monkeypatch.setattr(Split, "attend", split)
        for on in (True, False, True):
            arm = gate._Arm(model, cache, token, lambda on=on: steps.switched(on=on))
            arm.seconds(1)
            seen.clear()
            assert arm.seconds(3) > 0
            assert len(seen) == (6 if on else 0), "steps, layers"
            assert cache[0].offset == 3


def test_every_verdict_is_stored_and_noise_is_asked_again(
    home: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner(HOST, registries())
    end = time.monotonic() + 1e3
    rows = decide_steps(model, 1, planner, end)
    assert [row.slug for row in rows] == [slug(structure(model), 1)] * len(WAYS)
    assert [row.verdict and row.verdict.kernel for row in rows] == [*WAYS]
    assert all(row.verdict and row.verdict.correct for row in rows)
    assert {v.kernel for v in Planner(HOST, [Registry(home)]).counting(STEP)} == {*WAYS}
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.judge", wrong)
    assert decide_steps(model, 1, planner, end) == rows
    spent = decide_steps(model, 2, planner, time.monotonic())
    assert [row.reason for row in spent] == [f"{ALL}: the budget was spent"]

    timed = {**pair(1.03, 1.0, 1.1).to_json()}
    noisy = replace(rows[0].verdict, faster=False, timing=timed)  # type: ignore[type-var]
    planner.user.publish(HOST.slug, noisy)
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.judge", lambda *_: noisy)
    again = decide_steps(model, 1, planner, end)[0]
    assert again.verdict is not None
    assert again.verdict.asked == 2

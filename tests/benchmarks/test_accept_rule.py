"""benchmarks/accept_rule.py: the gate's own code on invented clocks, in a small sample."""

from __future__ import annotations

import accept_rule as rule
import numpy as np
import pytest

from mlx_lm_openevolve.gate import timing

CALL = 4e-5
BUDGET = 1.35


def test_the_invented_clock_runs_as_the_gate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the benchmark against timing.paired on the same clock."""

    def noise(t: np.ndarray, exact: np.ndarray, place: int, turned: np.ndarray) -> np.ndarray:
        return exact * (1 + 0.1 * np.sin(400 * t) + 0.01 * place + 0.02 * turned)

    clock = np.zeros(1)
    draws = np.random.default_rng([0, 3])
    low, high = rule.paired(noise, clock, (CALL, CALL / 1.1), 0.4, draws)

    state = {"now": 0.0, "place": 0, "before": "a"}

    class Arm:
        def __init__(self, name: str, call: float) -> None:
            self.name, self.call = name, call

        def seconds(self, calls: int) -> float:
            turned = np.array([self.name != state["before"]])
            exact = np.array([self.call * calls])
            taken = float(noise(np.array([state["now"]]), exact, state["place"], turned)[0])
            state["now"] += taken
            state["place"] = (state["place"] + 1) % 4
            state["before"] = self.name
            return taken

    def sleep(seconds: float) -> None:
        state["now"] += seconds

    monkeypatch.setattr(timing.time, "sleep", sleep)
    found = timing.paired(Arm("a", CALL), Arm("b", CALL / 1.1), CALL, 0.4, 0)
    assert found is not None
    assert clock[0] == pytest.approx(state["now"])
    assert (found.low, found.high) == pytest.approx((low[0], high[0]))


@pytest.mark.parametrize("kind", rule.KINDS)
def test_what_is_not_faster_is_accepted_under_no_noise(kind: str) -> None:
    for ratio in (0.97, 1.0):
        assert rule.runs_of(kind, ratio, CALL, BUDGET, 100, 0)["accepted"] == 0
    assert rule.runs_of(kind, 1.02, CALL, BUDGET, 100, 0)["accepted"] <= 1


@pytest.mark.parametrize("kind", rule.POWER)
def test_a_tenth_faster_is_accepted_through_noise(kind: str) -> None:
    assert rule.runs_of(kind, 1.1, CALL, BUDGET, 100, 0)["accepted"] >= 90


def test_a_pulse_in_step_with_blocks_is_what_drawn_order_and_gaps_are_for() -> None:
    before, now = (
        rule.runs_of("first-sample-slower", 1.1, CALL, BUDGET, 50, 0, fixed)
        for fixed in (True, False)
    )
    assert before["unsteady"] == 50
    assert now["accepted"] == 50


def test_asking_again_is_counted() -> None:
    found = rule.runs_of("white-20%", 1.0, CALL, BUDGET, 50, 0)
    assert found["processes"] > 2
    assert found["noise"] + found["firm"] + found["unsteady"] == 50


def test_the_upper_bound_is_that_of_clopper_and_pearson() -> None:
    assert rule.upper(0, 10_000) == pytest.approx(1 - 0.05 ** (1 / 10_000), rel=1e-6)
    assert rule.upper(4, 10_000) < 0.001 < rule.upper(5, 10_000)


def test_what_does_not_hold_is_named() -> None:
    good = {"call_seconds": CALL, "kind": "drift", "runs": 10_000, "accepted": 0, "upper": 0.0003}
    assert rule.faults([{**good, "ratio": 1.0}, {**good, "ratio": 1.02}]) == []
    assert len(rule.faults([{**good, "ratio": 1.0, "accepted": 1}])) == 1
    assert len(rule.faults([{**good, "ratio": 1.02, "accepted": 9, "upper": 0.0016}])) == 1
    assert len(rule.faults([{**good, "ratio": 1.1, "accepted": 8_999}])) == 1

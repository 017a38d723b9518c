"""Verdicts: what counts, what is refused, and how one is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from odd import ODD, changed
from samples import FINGERPRINT, accepted, timed

from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import FASTER, Verdict, binding, describe
from mlx_lm_openevolve.ops.attention.workload import Workload

WORKLOAD = Workload(1, 8, 2, 1, 1024, 64, 64, "bfloat16")


def verdict(**changes: Any) -> Verdict:
    return accepted(WORKLOAD, **changes)


def test_a_verdict_counts_only_for_its_fingerprint() -> None:
    assert verdict().counts_for({**FINGERPRINT, "also": {"driver": "other"}})
    for key, value in [("device", "x"), ("architecture", "x"), ("mlx", "0.33"), ("gate", "2.0")]:
        assert not verdict().counts_for({**FINGERPRINT, key: value})


def test_on_metal_a_verdict_counts_only_for_its_major_version_of_macos() -> None:
    metal = {**FINGERPRINT, "macos": "15"}
    assert verdict(fingerprint=metal).counts_for(dict(metal))
    assert not verdict(fingerprint=metal).counts_for({**metal, "macos": "26"})
    # One that was made before the version was kept says nothing of the compiler it met.
    assert not verdict().counts_for(metal)
    # What other backends store, and how it is keyed, is as it was.
    assert set(binding(FINGERPRINT)) == {"device", "architecture", "mlx", "gate"}


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "rejected"},
        {"kernel": "../../../x"},
        {"params": {"threads": "32"}},
        {"params": []},
        {"correct": 1},
        {"timing": {"ratio": 1e300}},
        {"timing": {"ratio": "fast"}},
        {"timing": {**timed(1.5), "beside": "another"}},
        {"timing": {**timed(1.5), "beside": {"standing": 1e300}}},
        {"timing": {**timed(1.5), "beside": {"standing": None}}},
        {"timing": {**timed(1.5), "beside": {"standing": 0.0}}},
        {"workload": "nonsense"},
        {"kind": "rumour"},
        {"asked": 0},
        {"faster": "yes"},
    ],
)
def test_a_record_that_no_gate_writes_is_refused(changes: dict[str, Any]) -> None:
    record = json.loads(json.dumps(verdict().to_json()))
    assert Verdict.from_json(record) == verdict()
    with pytest.raises((ValueError, TypeError)):
        Verdict.from_json({**record, **changes})


def test_accepted_verdicts_stand_by_what_turns_proved_and_older_ones_by_their_ratio() -> None:
    older = [verdict(timing=timed(ratio)) for ratio in (4.0, 3.0)]
    beside = [
        verdict(timing={**timed(5.0), "beside": {"kernel": "0" * 12, "standing": standing}})
        for standing in (4.1, 3.9, 0.0)
    ]
    slow = verdict(timing={**timed(9.0), "beside": {"standing": 9.0}}, faster=False)
    order = sorted([slow, *older, *beside], key=lambda v: v.rank, reverse=True)
    assert order == [beside[0], older[0], beside[1], older[1], beside[2], slow]


OPEN = {"ratio": 1.05, "low": 1.01, "high": 1.09}
FIRM = {"ratio": 0.99, "low": 0.97, "high": 1.01}
FINE = {"ratio": 1.5, "low": 1.4, "high": 1.6}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"timing": OPEN}, True),
        ({"timing": OPEN, "asked": 2}, True),
        ({"timing": OPEN, "asked": 3}, False),
        ({"timing": FIRM}, False),
        ({"timing": OPEN, "correct": False}, False),
        ({"timing": OPEN, "faster": None}, False),
        ({"timing": OPEN, "faster": True}, False),
        # The original against itself was so noisy that even this did not suffice.
        ({"timing": {**FINE, "same": {"high": 1.45}}}, True),
        # Faster, and rejected all the same: another fault.
        ({"timing": FINE}, False),
        # The sealed workload decides where it was reached.
        ({"timing": {**FINE, "sealed": OPEN}}, True),
        ({"timing": {**FINE, "sealed": FIRM}}, False),
        ({"timing": {"ratio": 1.1}}, False),
        ({"timing": {**FINE, "sealed": "of another release"}}, False),
    ],
)
def test_what_noise_rejected_and_nothing_else_is_asked_again(
    changes: dict[str, Any], again: bool
) -> None:
    assert verdict(**{"faster": False, **changes}).ask_again is again


@pytest.mark.parametrize(
    "changes",
    [
        {"timing": {}},
        {"timing": {"ratio": 1.5}},
        {"timing": {**timed(1.5), "low": 1.01}},
        {"timing": {**timed(1.5), "low": FASTER}},
        {"timing": {**timed(1.5), "low": "1.4"}},
        {"timing": {**timed(1.5), "low": True}},
        {"timing": {**timed(1.5), "ratio": 9.0}},
        {"timing": {**timed(1.5), "ratio": 1.05}},
        {"timing": {**timed(1.5), "sealed": {"low": 0.9}}},
        {"timing": {**timed(1.5), "sealed": {"low": "nan"}}},
        {"timing": {**timed(1.5), "sealed": None}},
        {"errors": {"margin": -0.01}},
        {"errors": {"margin": "nan"}},
        {"errors": {"margin": None}},
        {"mutants": {"killed": 4, "of": 5}},
        {"mutants": {"killed": 5, "of": 5, "survivors": ["half the keys"]}},
    ],
)
def test_accepted_follows_from_the_evidence(changes: dict[str, Any]) -> None:
    """A record that a person edited and sealed again says no more than its numbers do."""
    good = {"errors": {"margin": 0.2}, "mutants": {"killed": 5, "of": 5, "survivors": []}}
    record = json.loads(json.dumps(verdict(**good).to_json()))
    assert Verdict.from_json(record).accepted
    with pytest.raises(ValueError, match="evidence"):
        Verdict.from_json({**record, **changes})


def test_a_record_of_any_form_is_a_verdict_or_a_value_error() -> None:
    arm = {"mean": 2e-5, "trials": 40}
    times = {**timed(1.5), "high": 1.6, "on": WORKLOAD.slug, "baseline": arm, "candidate": arm}
    differences = {"max_difference": 0.1, "avg_difference": 0.1, "margin": 0.1}
    record = verdict(
        timing={**times, "sealed": times, "beside": {**times, "standing": 1.4}},
        errors={**differences, "stock": differences},
        mutants={"killed": 7, "of": 7, "survivors": [], "source": {"killed": 4}},
    ).to_json()
    read = 0
    for odd in ODD:
        for strange in changed(record, odd):
            try:
                found = Verdict.from_json(strange)
            except ValueError:
                continue
            read += 1
            assert describe(found)
            assert found.rank <= (True, True, 1e6)
            assert not found.counts_for({**FINGERPRINT, "device": "another"})
            json.dumps(found.to_json())
    assert read > 100  # of another form where it matters to nobody


def test_a_verdict_is_told_in_a_few_lines() -> None:
    errors = {"max_difference": 0.01, "avg_difference": 0.001, "margin": 0.8}
    arm = {"mean": 2e-5, "trials": 40}
    times = {"ratio": 1.5, "low": 1.4, "high": 1.6, "on": WORKLOAD.slug}
    times |= {"baseline": arm, "candidate": arm}
    told = verdict(
        errors={**errors, "stock": errors},
        timing={
            **times,
            "sealed": {**times, "on": WORKLOAD.exact(kv_len=700).slug},
            "beside": {**times, "kernel": "fedcba987654"},
        },
        mutants={"killed": 70, "of": 70, "source": {"killed": 43}},
    )
    text = "\n".join(describe(told))
    for part in (WORKLOAD.slug, "threads=32", "accepted: accepted", "70 of 70", "margin 80%"):
        assert part in text
    timed = "1.500 [1.400, 1.600], 20.0 us against 20.0 us, 40 trials"
    assert f"{timed}, on {WORKLOAD.exact(kv_len=700).slug}" in text
    assert f"  beside   {timed}, on {WORKLOAD.slug}, kernel fedcba987654" in text
    assert "correct: fine" in "\n".join(describe(verdict(faster=None, reason="fine")))


def test_an_error_that_is_no_number_is_described_and_is_json(tmp_path: Path) -> None:
    own = {"max_difference": 1e-3, "avg_difference": 1e-4}
    errors = {"max_difference": math.inf, "avg_difference": math.inf, "margin": 0, "stock": own}
    made = accepted(WORKLOAD, correct=False, faster=False, reason="not a number", errors=errors)
    Registry(tmp_path).publish("host", made)
    (stored,) = Registry(tmp_path).verdicts("host", WORKLOAD)
    for verdict in (made, stored):
        assert "max inf" in "\n".join(describe(verdict))
        assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))

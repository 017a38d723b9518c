"""benchmarks/beside_openevolve.py: what its scripted model says, and our side of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from beside_openevolve import CHOICES, FAULTS, STARTER, answers, endpoint, ours, program

from mlx_lm_openevolve import metalhost


def test_answers_are_the_same_each_time_and_every_fault_is_one() -> None:
    texts = answers(60)
    assert texts == answers(60)
    assert 40 < len(set(texts)) < 60  # some come twice
    first = tuple(values[0] for values in CHOICES.values())
    assert all(program(first, fault) != STARTER for fault in FAULTS)
    assert "$" not in STARTER


@pytest.mark.slow
@pytest.mark.skipif(not metalhost.compiler_available()[0], reason="no clang")
def test_our_side_takes_all_answers_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    texts = answers(4)
    with endpoint(texts) as model:
        row = ours(tmp_path / "whole", model, 2)
    assert (row["requests"], row["evaluated"]) == (4, 4)
    with endpoint(texts) as model:
        killed = ours(tmp_path / "killed", model, 2, stop=2)
    assert 4 <= killed["requests"] <= 6

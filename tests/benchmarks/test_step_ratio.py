"""Steps in turns: which arm has which step, and what a control excludes."""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import pytest
import step_ratio


def test_both_arms_have_steps_of_every_length_alike() -> None:
    """Lengths that suit MLX's products come at every eighth step: by turns one arm has them all."""

    def lengths(orders: list[str]) -> Counter[tuple[str, int]]:
        return Counter((arm, n % 8) for n, arm in enumerate("".join(orders)))

    drawn = lengths([*itertools.islice(step_ratio.orders(), 400)])
    by_turns = lengths([step_ratio.ORDERS[i % 2] for i in range(400)])
    assert all(60 < drawn[arm, n] < 140 for arm in "AB" for n in range(8))
    assert {by_turns[arm, 0] for arm in "AB"} == {0, 200}


@pytest.mark.parametrize("words", [["--ops", "attention"], ["--kv-bits", "4"]])
def test_a_control_compares_nothing_of_ours(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["step_ratio.py", "--control", *words])
    with pytest.raises(SystemExit, match="2"):
        step_ratio.main()
    assert "both arms are stock" in capsys.readouterr().err

"""benchmarks/start_up.py: what a process says of itself, and how samples become figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import start_up


def ours(names: list[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] == start_up.OURS]


def test_a_stock_process_imports_nothing_of_ours(tmp_path: Path) -> None:
    found, _ = start_up.process(False, None, str(tmp_path))
    assert ours(found["modules"]) == []
    assert len(found["seconds"]) == len(start_up.PARTS)
    assert found["seconds"][0] > 0.05  # mlx-lm itself
    assert sum(found["seconds"][1:3]) < 0.01


def test_an_enabled_process_does(tmp_path: Path) -> None:
    modules = start_up.imported(None, str(tmp_path))
    assert f"{start_up.OURS}.runtime.dispatch" in ours(list(modules))
    assert "mlx_lm" not in modules
    assert all(milliseconds >= 0 for milliseconds in modules.values())


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nonsense"):
        start_up.process(True, "nonsense", str(tmp_path))


def test_figures_are_milliseconds() -> None:
    samples = [[1.0, 0.001, 0.050, 0.002], [1.2, 0.003, 0.060, 0.002], [0.9, 0.002, 0.052, 0.004]]
    assert [text.strip() for text in start_up.figures(samples)] == [
        "1000.0 [900.0, 1200.0]",
        "2.0 [1.0, 3.0]",
        "52.0 [50.0, 60.0]",
        "2.0 [2.0, 4.0]",
        "54.0 [51.0, 63.0]",
    ]

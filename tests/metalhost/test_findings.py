"""Findings and launches as text and as data, and wrong use."""

from __future__ import annotations

from probe import launch, on_host

from mlx_lm_openevolve.metalhost import Finding, Place, check_source
from mlx_lm_openevolve.metalhost.findings import unique


def test_a_finding_reads_like_a_compilers_message() -> None:
    f = Finding("race", "two writes", 3, "k", "y[0] = 1;", Place("k", 5, "y[0] = 2;"), 1, (0, 0, 0))
    assert str(f).splitlines() == [
        "k:3: race: two writes",
        "     3 | y[0] = 1;",
        "k:5: note: the other side is here",
        "     5 | y[0] = 2;",
    ]
    data = f.to_dict()
    assert data["other"] == {"file": "k", "line": 5, "text": "y[0] = 2;"}
    assert data["threadgroup"] == [0, 0, 0]
    assert str(Finding("sandbox", "too long")) == "kernel: sandbox: too long"
    assert len(unique([f, f, Finding("race", "other words", 3, "k", "", f.other)])) == 1


@on_host
def test_launches_as_plain_data() -> None:
    data = launch("y[thread_position_in_grid.x] = 1;", count=True).to_dict()
    assert data["ok"] is True
    assert data["counters"]["device_write_bytes"] == 128
    assert data["run_seconds"] > 0


def test_rules_that_need_no_compiler() -> None:
    assert check_source("y[0] = 1; // caf\u00e9") == ()
    assert [f.kind for f in check_source("y[0] = 1; /* caf\u00e9 */ caf\u00e9")] == ["non-ascii"]
    assert [f.kind for f in check_source('#include "/etc/passwd"')] == ["sandbox"]
    assert [f.kind for f in check_source("y[0] = 1;", threadgroup=(64, 64, 1))] == [
        "threadgroup-size"
    ]
    assert check_source("y[0] = 1;", threadgroup=(32, 32, 1)) == ()

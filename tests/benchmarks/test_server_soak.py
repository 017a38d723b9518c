"""benchmarks/server_soak.py: what it counts and how it judges; the patched server for a moment."""

from __future__ import annotations

import json
from typing import Any

import pytest
import server_soak
from samples import needs_clang


@needs_clang
def test_the_patched_server_serves_two_clients(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--only", "patched", "--minutes", "0.02", "--clients", "2", "--longest", "40"]
    assert server_soak.main([*short, "--backend", "host", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"]["patched"]
    assert run["hits"] > 0
    assert run["requests"] == run["answered"] + run["left"] >= 2
    assert run["tokens"] >= run["answered"]
    assert run["errors"] == {}
    assert len(run["samples"]) >= 2


# Two threads at once: a line of the server's own log stands in the middle of a traceback.
LOG = """127.0.0.1 - - "POST /v1/completions HTTP/1.1" 200 -
----------------------------------------
Exception occurred during processing of request from ('127.0.0.1', 36036)
Traceback (most recent call last):
  File "socketserver.py", line 691, in process_request_thread
    self.finish_request(request, client_address)
BrokenPipeError: [Errno 32] Broken pipe
----------------------------------------
Traceback (most recent call last):
2026-11-21 05:10:00,000 - INFO - Prompt Cache: 2 sequences, 0.01 GB
  File "x.py", line 1, in f
ConnectionResetError: [Errno 104] Connection reset by peer
Traceback (most recent call last):
  File "/lib/mlx_lm_openevolve/dispatch.py", line 1, in f
mlx_lm_openevolve.errors.BackendError: no
"""


def test_exceptions_of_a_log_are_counted_by_type() -> None:
    assert server_soak.exceptions(LOG) == {
        "client went away": 2,
        "BackendError": 1,
        "frames of this package": 1,
    }
    assert server_soak.exceptions("all is well\n") == {}


def test_the_trend_is_that_of_the_floor_after_the_warm_up() -> None:
    warm = [(t, 100.0 + 10 * t, 5) for t in range(40)]  # ten MB a second, and then swings
    swings = [(t, 500.0 + 30 * (t % 3), 7) for t in range(40, 101)]
    flat = server_soak.trend([*warm, *swings])
    assert (flat["begin_mb"], flat["end_mb"], flat["end_files"]) == (500, 500, 7)
    leak = server_soak.trend([(t, 100.0 + t / 60, 5) for t in range(601)])
    assert leak["slope_mb_per_minute"] == pytest.approx(1, abs=1e-3)
    # From minute 4 and from minute 8 on.
    assert (leak["begin_mb"], leak["end_mb"]) == pytest.approx((104, 108), abs=0.1)


def run(**changes: Any) -> dict[str, Any]:
    memory = {"begin_mb": 200.0, "end_mb": 201.0}
    made = {"errors": {}, "log": {}, "hits": 9, "problems": [], "memory": memory, "minutes": 10.0}
    return made | changes


@pytest.mark.parametrize(
    ("stock", "patched", "says"),
    [
        (run(), run(), None),
        (run(), run(errors={"status 404": 2}), "status 404 (2 times)"),
        (run(errors={"status 404": 1}), run(errors={"status 404": 2}), None),
        (run(), run(log={"BackendError": 1}), "BackendError (1 times)"),
        (run(), run(log={"client went away": 3}), None),
        (run(), run(hits=0), "no kernel served a call"),
        (run(), run(problems=["not supported"]), "not supported"),
        (run(), run(memory={"begin_mb": 200.0, "end_mb": 208.0}), "memory grows from 200 to 208"),
        (run(), run(memory={"begin_mb": 200.0, "end_mb": 208.0}, minutes=0.5), None),
        (run(), run(memory={"begin_mb": 150.0, "end_mb": 190.0}), None),  # up to stock's level
        (
            run(memory={"begin_mb": 200.0, "end_mb": 205.0}),
            run(memory={"begin_mb": 207.0, "end_mb": 212.0}),
            None,
        ),
    ],
)
def test_the_patched_server_is_judged_beside_stock(
    stock: dict[str, Any], patched: dict[str, Any], says: str | None
) -> None:
    wrong = server_soak.judge({"stock": stock, "patched": patched})
    assert [line.startswith(says or "") for line in wrong] == ([True] if says else [])
